//! The top-level modules of a crate import from each other in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Imports against the direction of the others that are still to go: crate, module, what it imports from.
const KNOWN: [(&str, &str, &str); 3] = [
    ("crates/dr-train", "nn", "models"),
    ("crates/dr-train", "artifact", "mixed"),
    ("kernels", "reference", "cpu"),
];

/// The modules that each top-level module of the crate imports from, by the paths `crate::name` in its code.
fn imports(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut imports = BTreeMap::new();
    for entry in fs::read_dir(source).expect("the sources of a crate").flatten() {
        let name = entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
        if name != "lib" && name != "main" {
            read(&entry.path(), imports.entry(name).or_default());
        }
    }
    let names: BTreeSet<String> = imports.keys().cloned().collect();
    for (name, others) in &mut imports {
        others.retain(|other| other != name && names.contains(other));
    }
    imports
}

fn read(path: &Path, others: &mut BTreeSet<String>) {
    if path.is_dir() {
        fs::read_dir(path).expect("a folder").flatten().for_each(|entry| read(&entry.path(), others));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).expect("a source file");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = code.lines().filter_map(|line| line.split("//").next());
        let name =
            |path: &str| path.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
        others.extend(code.flat_map(|line| line.split("crate::").skip(1)).filter_map(name));
    }
}

#[test]
fn modules_have_no_cycles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in ["crates/dr-precision", "crates/dr-train", "kernels"] {
        let mut imports = imports(&root.join(name).join("src"));
        for (_, module, other) in KNOWN.iter().filter(|(of, ..)| *of == name) {
            imports.get_mut(*module).map(|others| others.remove(*other));
        }
        // A module whose imports are all in no cycle is in none itself.
        while let Some(name) =
            imports.iter().find(|(_, others)| others.is_empty()).map(|(name, _)| name.clone())
        {
            imports.remove(&name);
            imports.values_mut().for_each(|others| {
                others.remove(&name);
            });
        }
        assert!(imports.is_empty(), "{name}: modules in cycles, or importing from those: {imports:#?}");
    }
}
