//! The program `dr-train` with a network of one's own among its networks:
//!
//! ```text
//! cargo run --release -p dr-train --example program -- train --model branches --out FOLDER
//! ```

mod branches;

use dr_train::experiment::Registry;
use std::process::ExitCode;

fn main() -> ExitCode {
    dr_train::cli::run(&Registry::default().with_model(&branches::BranchesKind))
}
