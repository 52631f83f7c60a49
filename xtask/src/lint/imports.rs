//! Files of a crate that import each other in a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

/// A module's path below its crate; the crate itself is empty.
type Module = Vec<String>;

/// Each module of one crate, with what it imports.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// Fails with every circle of imports among these files, crate by crate. Tests may import what they like.
pub(super) fn check(root: &Path, files: &[String]) -> Result<()> {
    let mut crates: BTreeMap<&str, Vec<(Module, String)>> = BTreeMap::new();
    for file in files {
        let Some((name, path)) = file.split_once("/src/") else { continue };
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        if !path.ends_with("tests.rs") {
            crates.entry(name).or_default().push((module(path), text));
        }
    }
    let circles: Vec<_> = crates
        .iter()
        .flat_map(|(name, sources)| {
            let circles = circles(&graph(sources)).into_iter();
            circles.map(move |circle| format!("{name}: {}", circle.join(" ↔ ")))
        })
        .collect();
    ensure!(circles.is_empty(), "files import each other in a circle:\n{}", circles.join("\n"));
    Ok(())
}

/// `a/b.rs` and `a/b/mod.rs` are the module `a::b`; `lib.rs` and `main.rs` are the crate.
fn module(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].iter().any(|root| module.last().is_some_and(|last| last == root)) {
        module.pop();
    }
    module
}

fn graph(sources: &[(Module, String)]) -> Graph {
    let modules: BTreeSet<&Module> = sources.iter().map(|(module, _)| module).collect();
    let mut graph = Graph::new();
    for (own, text) in sources {
        let imported = imports(without_tests(text)).filter_map(|path| {
            let mut target = resolve(own, &path)?;
            while !modules.contains(&target) {
                target.pop()?;
            }
            (target != *own).then_some(target)
        });
        graph.entry(own.clone()).or_default().extend(imported);
    }
    graph
}

/// The code before the module of tests, whatever its visibility.
fn without_tests(text: &str) -> &str {
    let mut tests = text.match_indices("#[cfg(test)]\n").filter(|(at, attribute)| {
        let item = text[at + attribute.len()..].lines().next().unwrap_or_default();
        item.contains("mod ") && item.ends_with('{')
    });
    tests.next().map_or(text, |(at, _)| &text[..at])
}

/// Every path that the `use` items of this code import.
fn imports(code: &str) -> impl Iterator<Item = String> {
    let begins = |line: &str| {
        let rest = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        rest.trim_start_matches("pub(super) ").strip_prefix("use ").map(str::len)
    };
    let mut items = Vec::new();
    let mut rest = code;
    while !rest.is_empty() {
        let (line, _) = rest.split_once('\n').unwrap_or((rest, ""));
        let item = begins(line).and_then(|length| rest[line.len() - length..].split_once(';'));
        if let Some((item, after)) = item {
            items.extend(paths(&item.split_whitespace().collect::<Vec<_>>().join(" ")));
            rest = after;
        } else {
            rest = rest.get(line.len() + 1..).unwrap_or_default();
        }
    }
    items.into_iter()
}

/// `a::{b, c::d}` are `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let Some((prefix, group)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().into_iter().for_each(|part| part.push(letter));
    }
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(paths).map(|path| format!("{}{path}", prefix.trim())).collect()
}

/// The path below the crate of what the module `own` imports. Returns `None` if it is of another crate.
fn resolve(own: &[String], path: &str) -> Option<Module> {
    let mut segments =
        path.split("::").map(|segment| segment.split(' ').next().unwrap_or(segment)).peekable();
    let mut base = match *segments.peek()? {
        "crate" => Module::new(),
        "self" | "super" => own.to_vec(),
        _ => return None,
    };
    for segment in segments {
        match segment {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            name => base.push(name.to_owned()),
        }
    }
    Some(base)
}

/// The groups of modules that can reach each other.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<_, _> = graph.keys().map(|module| (module, reachable(graph, module))).collect();
    let name = |module: &&Module| [&["crate".to_owned()], module.as_slice()].concat().join("::");
    let circles: BTreeSet<Vec<String>> = reached
        .iter()
        .filter(|(module, reached)| reached.contains(*module))
        .map(|(module, seen)| {
            seen.iter().filter(|other| reached[**other].contains(*module)).map(name).collect()
        })
        .collect();
    circles.into_iter().collect()
}

fn reachable<'a>(graph: &'a Graph, from: &'a Module) -> BTreeSet<&'a Module> {
    let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
    while let Some(module) = waiting.pop() {
        waiting.extend(graph.get(module).into_iter().flatten().filter(|next| seen.insert(*next)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources: Vec<_> = files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect();
        circles(&graph(&sources))
    }

    #[test]
    fn circle_is_found_through_groups_and_super() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a/mod.rs", "pub(crate) mod c;\n"),
            ("a/c.rs", "use std::fmt;\n\nuse crate::{\n    b::{self, Thing},\n    d,\n};\n"),
            ("b.rs", "use super::a::c::Other as _;\n"),
            ("d.rs", "use std::fs;\n"),
        ];
        assert_eq!(circles_of(&files), [["crate::a::c", "crate::b"]]);
    }

    #[test]
    fn parent_and_child_that_import_each_other_are_a_circle() {
        let files = [("a/mod.rs", "mod b;\npub use self::b::B;\n"), ("a/b.rs", "use super::A;\n")];
        assert_eq!(circles_of(&files), [["crate::a", "crate::a::b"]]);
    }

    #[test]
    fn tests_and_other_crates_make_no_circle() {
        let files = [
            ("a.rs", "use crate::b::B;\n"),
            ("b.rs", "use a::A;\n\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"),
        ];
        assert_eq!(circles_of(&files), Vec::<Vec<String>>::new());
    }
}
