//! The software bill of materials: what the program is made of, as `CycloneDX` 1.5.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde_json::{Value, json};

use crate::{target::Target, workspace::Workspace};

/// The program, and the object that it embeds.
const ROOTS: [&str; 2] = ["handshake-user", "handshake-ebpf"];

/// Writes the bill for this target.
pub(super) fn write(workspace: &Workspace, target: Target, version: &str, to: &Path) -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(workspace.root.join("Cargo.toml"))
        .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), target.triple().to_owned()])
        .exec()
        .context("`cargo metadata` failed: is Cargo.lock up to date?")?;
    let text = serde_json::to_string_pretty(&bill(&metadata, version)).context("the bill has no JSON")?;
    fs::write(to, text + "\n").with_context(|| format!("cannot write {}", to.display()))
}

fn bill(metadata: &Metadata, version: &str) -> Value {
    let edges = linked(metadata);
    let packages: BTreeMap<_, _> = metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let root = format!("pkg:generic/handshake@{version}");
    let components: Vec<_> = edges.keys().filter_map(|id| packages.get(id)).map(|p| component(p)).collect();
    let references = |ids: &BTreeSet<&PackageId>| -> Vec<_> {
        ids.iter().filter_map(|id| packages.get(id)).map(|package| reference(package)).collect()
    };
    let mut dependencies: Vec<_> = edges
        .iter()
        .filter_map(|(id, ids)| Some((packages.get(id)?, ids)))
        .map(|(package, ids)| json!({"ref": reference(package), "dependsOn": references(ids)}))
        .collect();
    let roots: Vec<_> = edges
        .keys()
        .filter_map(|id| packages.get(id))
        .filter(|package| ROOTS.contains(&package.name.as_str()))
        .map(|package| reference(package))
        .collect();
    dependencies.push(json!({"ref": root, "dependsOn": roots}));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "bom-ref": root, "name": "handshake", "version": version,
        }},
        "components": components,
        "dependencies": dependencies,
    })
}

/// Every package that is linked into the program or its object, and those it depends on; not what only builds
/// or tests them.
fn linked(metadata: &Metadata) -> BTreeMap<&PackageId, BTreeSet<&PackageId>> {
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let nodes: BTreeMap<_, _> = nodes.map(|node| (&node.id, node)).collect();
    let is_root = |package: &&Package| ROOTS.contains(&package.name.as_str());
    let mut due: Vec<_> = metadata.packages.iter().filter(is_root).map(|package| &package.id).collect();
    let mut edges = BTreeMap::new();
    while let Some(id) = due.pop() {
        if edges.contains_key(id) {
            continue;
        }
        let dependencies = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let is_linked = |kinds: &[cargo_metadata::DepKindInfo]| {
            kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
        };
        let ids: BTreeSet<_> =
            dependencies.filter(|dep| is_linked(&dep.dep_kinds)).map(|dep| &dep.pkg).collect();
        due.extend(&ids);
        edges.insert(id, ids);
    }
    edges
}

fn component(package: &Package) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name.as_str(),
        "version": package.version.to_string(),
        "purl": reference(package),
    });
    if let Some(license) = &package.license {
        // crates.io still has some in the old form, with a slash.
        component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    component
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bill_has_what_is_linked_and_not_what_only_tests_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bill.json");
        write(&Workspace::locate().unwrap(), Target::X86_64, "1.2.3", &file).unwrap();
        let bill: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let components = bill["components"].as_array().unwrap();
        let names: BTreeSet<_> = components.iter().map(|part| part["name"].as_str().unwrap()).collect();
        for part in ["aya", "aya-ebpf", "handshake-common", "rustls", "tokio", "toml"] {
            assert!(names.contains(part), "{part} is missing");
        }
        for other in ["insta", "proptest", "cargo_metadata", "windows-sys"] {
            assert!(!names.contains(other), "{other} is not in the program");
        }
        let references: BTreeSet<_> =
            components.iter().map(|part| &part["bom-ref"]).map(Value::to_string).collect();
        assert_eq!(references.len(), components.len());
        for dependency in bill["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(references.contains(&on.to_string()), "{on}");
            }
        }
    }
}
