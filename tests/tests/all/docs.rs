//! README and book: links lead somewhere, every page is in the table of contents, and the program takes the commands.

use dr_train::cli::Cli;
use dr_train::experiment::Registry;
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
