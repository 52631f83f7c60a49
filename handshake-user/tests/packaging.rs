//! The dashboard and the rules as files: what Grafana, Prometheus and a reader of an alert rely on. Their
//! queries are run by a real Prometheus in `operator`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::{Value, json};

fn text(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard() -> Value {
    serde_json::from_str(&text("packaging/grafana/handshake.json")).unwrap()
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// Grafana gives an import ids of its own, and asks for the data source.
#[test]
fn dashboard_is_bound_to_no_grafana() {
    let dashboard = dashboard();
    assert_eq!((&dashboard["id"], &dashboard["uid"]), (&Value::Null, &Value::Null));
    assert!(dashboard["schemaVersion"].as_u64().is_some() && dashboard["title"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    assert_eq!(variables[0]["type"], "datasource");

    let own = json!({"type": "prometheus", "uid": "${datasource}"});
    let mut found = 0;
    let mut left = vec![&dashboard];
    while let Some(value) = left.pop() {
        if let Some(source) = value.get("datasource") {
            assert_eq!(source, &own);
            found += 1;
        }
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(values) => left.extend(values.values()),
            _ => {}
        }
    }
    assert!(found > 60, "{found} data sources");
}

#[test]
fn panels_have_their_own_ids_and_places() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeMap::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another panel's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is outside of the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert_eq!(taken.insert(cell, title), None, "{title} is over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(["timeseries", "stat"].contains(&panel["type"].as_str().unwrap()), "{title}");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 5), "{title} explains nothing");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        let targets = panel["targets"].as_array().unwrap();
        let letters: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && letters.len() == targets.len(), "{title}");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            assert!(query.contains("instance=~\"$instance\"") && query.contains("job=~\"$job\""), "{query}");
            assert!(
                !query.contains("_total{") || query.contains("rate("),
                "a counter without a rate: {query}"
            );
        }
    }
}

#[test]
fn rows_go_from_the_top_down() {
    let dashboard = dashboard();
    let rows: Vec<_> = panels(&dashboard).iter().filter(|panel| panel["type"] == "row").collect();
    let titles: Vec<_> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(
        titles,
        [
            "At a glance",
            "Are openings slow or failing?",
            "Is it the network, the handshake or the program?",
            "Which round trips could be saved?",
            "Who closes badly?",
            "What is spoken?",
            "Is the tracer itself well?",
        ]
    );
}

/// What follows the key in every line that begins with it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix(key)).map(str::trim).collect()
}

/// An anchor is the heading in small letters.
#[test]
fn every_alert_has_its_section_in_the_runbooks_and_a_test() {
    let (rules, tests, runbooks) = (
        text("packaging/prometheus/alerts.yml"),
        text("packaging/prometheus/tests.yml"),
        text("docs/runbooks.md"),
    );
    let alerts = values(&rules, "- alert: ");
    assert!(alerts.len() >= 10);
    let anchors: Vec<_> =
        alerts.iter().map(|alert| format!("docs/runbooks.md#{}", alert.to_lowercase())).collect();
    assert_eq!(values(&rules, "runbook_url: "), anchors);
    assert_eq!(values(&runbooks, "## "), alerts, "a section each, in their order");
    for (alert, section) in alerts.iter().zip(runbooks.split("\n## ").skip(1)) {
        for part in ["**Means**", "**Look**", "**Do**"] {
            assert!(section.contains(part), "{alert} has no {part}");
        }
        let fires = tests.contains(&format!("- alertname: {alert}\n"));
        let is_silent = tests.contains(&format!("- {{alertname: {alert}, eval_time: "));
        assert!(fires && is_silent, "{alert} is not tested");
    }
}

/// Every metric that a query, a rule or a runbook names is one of the daemon's.
#[test]
fn metrics_that_are_named_exist() {
    let metrics = text("docs/metrics.md");
    let sources = [
        "packaging/grafana/handshake.json",
        "packaging/prometheus/recording.yml",
        "packaging/prometheus/alerts.yml",
    ];
    let mut found = BTreeSet::new();
    for source in sources {
        let text = text(source);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        found.extend(words.filter(|word| word.starts_with("handshake_")).map(str::to_owned));
    }
    assert!(found.len() > 20, "{found:?}");
    for name in found {
        let name = name.strip_suffix("_bucket").unwrap_or(&name);
        assert!(metrics.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
}

/// The objects of a manifest of Kubernetes, by their kinds.
fn objects(file: &str) -> BTreeMap<String, Value> {
    let text = text(file);
    let documents = text.split("---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    documents.map(|document| (document["kind"].as_str().unwrap().to_owned(), document)).collect()
}

fn strings(value: &Value) -> BTreeSet<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn container_has_the_capabilities_of_the_unit_and_no_other_privilege() {
    let unit = text("packaging/systemd/handshake.service");
    let of_unit = values(&unit, "CapabilityBoundingSet=")[0];
    let of_unit: BTreeSet<_> = of_unit.split(' ').map(|name| name.trim_start_matches("CAP_")).collect();
    let of_wire = BTreeSet::from(["BPF", "NET_ADMIN", "PERFMON"]);
    for (file, expected) in [
        ("packaging/kubernetes/handshake.yaml", &of_unit),
        ("packaging/kubernetes/handshake-wire-only.yaml", &of_wire),
    ] {
        let pod = &objects(file)["DaemonSet"]["spec"]["template"]["spec"];
        assert_eq!(pod["hostPID"], true);
        assert_eq!(pod["automountServiceAccountToken"], false);
        let container = &pod["containers"][0];
        let security = &container["securityContext"];
        assert_eq!(strings(&security["capabilities"]["add"]), *expected, "{file}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(security["readOnlyRootFilesystem"], true);
        for refused in ["privileged", "allowPrivilegeEscalation"] {
            assert_eq!(security[refused], false, "{refused}");
        }
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert_eq!(mount["readOnly"], true, "{mount}");
        }
        let memory = format!("{}i", values(&unit, "MemoryMax=")[0]);
        assert_eq!(container["resources"]["limits"]["memory"], memory.as_str());
    }
}

#[test]
fn chart_is_of_this_version() {
    let chart = text("packaging/helm/handshake/Chart.yaml");
    assert_eq!(values(&chart, "version:"), [env!("CARGO_PKG_VERSION")]);
    assert_eq!(values(&chart, "appVersion:"), [env!("CARGO_PKG_VERSION")]);
}

/// The names of all fields of a record, wherever they are in it.
fn fields(schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.extend(properties.keys().cloned());
    }
    schema["$defs"].as_object().into_iter().flat_map(|defs| defs.values()).for_each(|def| fields(def, found));
}

#[test]
fn tables_for_fleets_have_every_field_of_a_record() {
    let mut expected = BTreeSet::new();
    fields(&serde_json::from_str(&text("docs/record.schema.json")).unwrap(), &mut expected);
    assert!(expected.len() > 60 && expected.contains("compute_us"), "{expected:?}");
    for file in ["packaging/fleet/clickhouse.sql", "packaging/fleet/duckdb.sql"] {
        let sql = text(file);
        let words: BTreeSet<_> = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let missing: Vec<_> = expected.iter().filter(|field| !words.contains(field.as_str())).collect();
        assert!(missing.is_empty(), "{file} lacks {missing:?}");
    }
}

/// The page shows each file of SQL as it is.
#[test]
fn page_about_fleets_has_the_sql_of_the_files() {
    let page = text("docs/fleet.md");
    let shown: Vec<_> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let queries = text("packaging/fleet/queries.sql");
    let queries = queries.split_inclusive(";\n").map(|query| query.trim_start_matches('\n'));
    let files = ["clickhouse-load.sql", "clickhouse.sql", "duckdb.sql"];
    let files: Vec<_> = files.iter().map(|file| text(&format!("packaging/fleet/{file}"))).collect();
    let mut expected: Vec<_> = queries.filter(|query| !query.is_empty()).collect();
    // The first comment is that of the file.
    expected[0] = expected[0].split_once("\n\n").unwrap().1;
    expected.extend(files.iter().map(String::as_str));
    for sql in &expected {
        assert!(shown.contains(sql), "docs/fleet.md lacks:\n{sql}");
    }
    assert_eq!(shown.len(), expected.len());
}
