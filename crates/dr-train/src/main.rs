//! The `dr-train` program.

use dr_train::experiment::Registry;
use std::process::ExitCode;

fn main() -> ExitCode {
    dr_train::cli::run(&Registry::default())
}
