//! Text written by people and programs.

use crate::Seed;

pub fn all() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = vec![
        ("config", "manual".to_owned(), include_bytes!("../../../config/handshake.toml").to_vec()),
        ("config", "all".to_owned(), CONFIG.into()),
        (
            "explain",
            "gzip".to_owned(),
            include_bytes!("../../../handshake-user/tests/records/two-members.gz").to_vec(),
        ),
        (
            "explain",
            "zstd".to_owned(),
            include_bytes!("../../../handshake-user/tests/records/two-frames.zst").to_vec(),
        ),
    ];
    for (index, request) in REQUESTS.iter().enumerate() {
        seeds.push(("http", index.to_string(), [&[255], request.as_bytes()].concat()));
    }
    seeds
}

const CONFIG: &str = "listen = \"127.0.0.1:9966\"
buckets = [0.001, 1.0]
labels = [\"process\", \"local_port\", \"remote_net\", \"cgroup\", \"sni\"]
max_series = 200
remote_net_ipv4 = 24
remote_net_ipv6 = 48
attach = \"tp_btf\"
ring_kib = 8192
max_connections = 262144
tls_wire = \"443,8443\"
tls_libraries = \"on\"
";

const REQUESTS: &[&str] = &[
    "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "HEAD / HTTP/1.0\r\n\r\n",
    "POST /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
    "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "GET http://a/metrics?x=1 HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nAccept-Encoding: gzip\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];
