//! Any bytes as what a client sends to the daemon's HTTP server. The first byte says in how large pieces.
#![no_main]

use std::{sync::Arc, time::Duration};

use handshake::{exporter::http::Pages, fuzzing::http};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};

/// A client that has said all that it wants to say is answered by then.
const TIMEOUT: Duration = Duration::from_secs(2);

struct Still;

impl Pages for Still {
    fn metrics(&self) -> anyhow::Result<String> {
        Ok("up 1\n".to_owned())
    }

    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        Err("the probes are not attached".to_owned())
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|data: &[u8]| {
    let Some((size, sent)) = data.split_first() else { return };
    let answers = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (server, mut client) = duplex(1 << 20);
            let serving = http(server, Arc::new(Still));
            let asking = async {
                for piece in sent.chunks(usize::from(*size).max(1)) {
                    // It may have hung up.
                    if client.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = client.shutdown().await;
                let mut answers = Vec::new();
                let _ = client.read_to_end(&mut answers).await;
                answers
            };
            let both = async { tokio::join!(serving, asking).1 };
            timeout(TIMEOUT, both)
                .await
                .expect("the end of what the client says is the end of the connection")
        })
    });
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{answers:?}");
    // A request takes 16 bytes at least, an answer some hundred.
    assert!(answers.len() <= 1024 * (1 + sent.len() / 16), "more than was asked for");
});
