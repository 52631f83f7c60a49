//! The JSON Schema of the record: generated from the types, committed as docs/record.schema.json, and held
//! together with the tables of docs/json-schema.md.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

use super::ConnectionEvent;

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

fn generated() -> Value {
    let mut schema = schemars::schema_for!(ConnectionEvent).to_value();
    schema["title"] = "A record of handshake".into();
    without_null(&mut schema);
    schema
}

/// A property that is unknown is absent, never `null`.
fn without_null(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        if let Some(Value::Array(any_of)) = object.get("anyOf")
            && let [Value::Object(reference), _] = &any_of[..]
        {
            let reference = reference.clone();
            object.remove("anyOf");
            object.extend(reference);
        }
        if let Some(Value::Array(words)) = object.get_mut("enum") {
            words.retain(|word| !word.is_null());
        }
        if let Some(kind) = object.get_mut("type")
            && let Value::Array(kinds) = kind
        {
            *kind = kinds[0].take();
        }
        object.values_mut().for_each(without_null);
    } else if let Some(values) = schema.as_array_mut() {
        values.iter_mut().for_each(without_null);
    }
}

/// `UPDATE_SCHEMA=1` writes the file.
#[test]
fn committed_schema_is_the_generated_one() {
    let path = docs("record.schema.json");
    let text = format!("{:#}\n", generated());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    assert!(committed == text, "run `UPDATE_SCHEMA=1 cargo test -p handshake-user schema` and commit it");
}

/// Every property, as the documentation names it: `process.pid` in the first table, `rtt_us` in that of its
/// section.
fn properties(schema: &Value, of: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    for (name, property) in of["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        if let Some(reference) = property.get("$ref") {
            let pointer = reference.as_str().unwrap().trim_start_matches('#');
            properties(schema, schema.pointer(pointer).unwrap(), &format!("{path}."), found);
        }
        found.insert(path);
    }
}

/// The first cells of the tables under `## Records`, with the section's name before those of a section's
/// table.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(docs("json-schema.md")).unwrap();
    let records = text.split("\n## ").find(|part| part.starts_with("Records")).unwrap();
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in records.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title.strip_prefix('`').map_or_else(String::new, |name| name.replace('`', "."));
        }
        let Some(cell) = line.strip_prefix("| `").and_then(|rest| rest.split(" | ").next()) else { continue };
        found.extend(
            cell.split('`')
                .filter(|name| !name.is_empty() && *name != ", ")
                .map(|name| format!("{section}{name}")),
        );
    }
    found
}

#[test]
fn documentation_names_every_property_and_no_other() {
    let schema = generated();
    let mut found = BTreeSet::new();
    properties(&schema, &schema, "", &mut found);
    // The two ends are described by their members.
    for end in ["local", "remote"] {
        found.remove(end);
    }
    assert_eq!(documented(), found);
}
