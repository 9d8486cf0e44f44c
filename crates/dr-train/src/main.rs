//! The `dr-train` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    dr_train::cli::run()
}
