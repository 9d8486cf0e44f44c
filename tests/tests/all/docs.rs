//! README and book: links lead somewhere, every page is in the table of contents, and the program takes the commands.

use dr_precision::PrecisionSet;
use dr_train::cli::Cli;
use dr_train::config::{OptimizerKind, Rates};
use dr_train::data::datasets;
use dr_train::experiment::Registry;
use dr_train::quantization::DistillationOptions;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const BOOK: &str = "docs/src";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// `README.md`, `CHANGELOG.md` and the pages of the book, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let book =
        fs::read_dir(root().join(BOOK)).expect("the book").map(|entry| entry.expect("an entry").path());
    let pages = book.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let others = ["README.md", "CHANGELOG.md"].map(|name| root().join(name));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a page");
        (path, text)
    };
    pages.chain(others).map(read).collect()
}

/// Lines of a page, and of which kind of code they are, if any.
fn lines(text: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    let mut code = None;
    text.lines().filter_map(move |line| match (line.trim_start().strip_prefix("```"), code) {
        (Some(kind), None) => {
            code = Some(kind);
            None
        }
        (Some(_), Some(_)) => {
            code = None;
            None
        }
        (None, _) => Some((code, line)),
    })
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = lines(text).filter_map(|(code, line)| line.strip_prefix('#').filter(|_| code.is_none()));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
            .collect::<String>()
            .replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut dead = vec![];
    for (page, text) in pages() {
        let prose = lines(&text).filter(|(code, _)| code.is_none()).map(|(_, line)| line);
        let targets =
            prose.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let text = fs::read_to_string(&to).unwrap_or_default();
            if !to.exists() || (!anchor.is_empty() && !anchors(&text).contains(anchor)) {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert_eq!(dead, Vec::<String>::new());
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let contents = fs::read_to_string(root().join(BOOK).join("SUMMARY.md")).expect("the table of contents");
    let is_missing = |page: &PathBuf| {
        let name = page.file_name().expect("a name").to_string_lossy();
        page.parent().is_some_and(|folder| folder.ends_with(BOOK))
            && name != "SUMMARY.md"
            && !contents.contains(&format!("]({name})"))
    };
    let missing: Vec<PathBuf> = pages().into_iter().map(|(page, _)| page).filter(is_missing).collect();
    assert_eq!(missing, Vec::<PathBuf>::new());
}

/// The words of a line of a shell, up to a comment, a pipe or what else ends a command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(end), _) if c == end => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '#' | '|' | '>' | ';' | '&') if word.is_none() => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn the_program_takes_all_commands() {
    let registry = Registry::default();
    let (mut refused, mut count) = (vec![], 0);
    for (page, text) in pages() {
        let shell = lines(&text).filter(|(code, _)| *code == Some("sh"));
        let shell = shell.map(|(_, line)| line).collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        for line in shell.lines() {
            let words = words(line);
            let is_program = |word: &String| word.rsplit('/').next() == Some("dr-train");
            let Some(start) = words.iter().position(is_program) else { continue };
            // Another program, with arguments or networks of its own.
            if words.iter().any(|word| word == "--example") {
                continue;
            }
            // `cargo run -p dr-train -- train` has the arguments after `--`, if there are some.
            let arguments = match words[..start].iter().any(|word| word == "cargo") {
                true => words.iter().position(|word| word == "--").map_or(&[][..], |at| &words[at + 1..]),
                false => &words[start + 1..],
            };
            count += 1;
            let program = ["dr-train".to_owned()];
            if let Err(error) = Cli::read(&registry, program.iter().chain(arguments)) {
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                refused.push(format!("{}: {line}: {reason}", page.display()));
            }
        }
    }
    assert_eq!(refused, Vec::<String>::new());
    assert!(count > 50, "found only {count} commands");
}

/// The rows of the table of `docs/src/cli.md` below a heading, with their cells.
fn table_below(heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(BOOK).join("cli.md")).expect("the page of commands");
    let below = text.split_once(&format!("### {heading}\n")).expect("the heading").1;
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// Numbers of a cell, one for each comma.
fn numbers(cell: &str) -> Vec<f64> {
    cell.split(',').map(|number| number.trim().parse().expect("a number")).collect()
}

/// Names between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn defaults_of_datasets_are_those_of_the_page() {
    let mut said = BTreeSet::new();
    let mut rows = table_below("Defaults of each dataset");
    let of_files = rows.pop().expect("the last row, of networks in files");
    for row in rows {
        for name in quoted(&row[0]) {
            said.insert(name.to_owned());
            let config = datasets().get(name).expect("a dataset").settings();
            let names = [config.model.as_str(), config.optimizer.name()];
            assert_eq!([&row[1], &row[5]].map(|cell| quoted(cell)[0]), names, "{name}");
            let counts = [config.float_epochs, config.epochs, config.batch_size].map(|count| count as f64);
            assert_eq!([&row[2], &row[3], &row[4]].map(|cell| numbers(cell)[0]), counts, "{name}");
            assert_eq!(numbers(&row[6]), [config.lr, config.joint_lr, config.scale_lr], "{name}");
            assert_eq!(row[7].parse::<PrecisionSet>().expect("precisions"), config.precisions, "{name}");
        }
    }
    assert_eq!(said, datasets().iter().map(|kind| kind.name().to_owned()).collect());
    let distilled = DistillationOptions::default();
    assert_eq!(numbers(&of_files[3]), [distilled.epochs as f64]);
    assert_eq!(numbers(&of_files[4]), [distilled.batch_size as f64]);
    assert_eq!([distilled.weight_rate, distilled.scale_rate], [1e-4; 2]);
}

#[test]
fn rates_of_optimizers_are_those_of_the_page() {
    let mut said = 0;
    for row in table_below("Learning rates") {
        for name in quoted(&row[0]).into_iter().filter(|name| *name != "--weights") {
            let optimizer = name.parse::<OptimizerKind>().expect("an optimizer");
            let rates = Rates::usual(optimizer, row[0].contains("--weights"));
            let page = [&row[1], &row[2], &row[3]].map(|cell| numbers(cell)[0]);
            assert_eq!(page, [rates.lr, rates.joint_lr, rates.scale_lr], "{name}");
            said += 1;
        }
    }
    assert_eq!(said, 2 * OptimizerKind::ALL.len());
}
