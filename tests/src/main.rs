//! The `dr-train` program, built as part of this package so that its tests find it.

use dr_train::experiment::Registry;
use std::process::ExitCode;

fn main() -> ExitCode {
    dr_train::cli::run(&Registry::default())
}
