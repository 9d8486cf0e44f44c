//! The `dr-train` program, built as part of this package so that its tests find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    dr_train::cli::run()
}
