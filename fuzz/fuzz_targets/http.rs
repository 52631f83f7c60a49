//! Fuzzes the daemon's HTTP server with arbitrary bytes from a client. The first byte is the size of the
//! pieces in which they are sent.
#![no_main]

use std::{sync::Arc, time::Duration};

use handshake::{
    exporter::{http::Pages, metrics::Format},
    fuzzing::http,
    recording::{NoLookBack, Written},
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};

/// The time limit for the response after the client has sent everything.
const TIMEOUT: Duration = Duration::from_secs(2);

struct Still;

impl Pages for Still {
    fn page(&self) -> anyhow::Result<String> {
        Ok(String::new())
    }

    fn shows_page_to_all(&self) -> bool {
        false
    }

    fn metrics(&self, _: Format) -> anyhow::Result<String> {
        Ok("up 1\n".to_owned())
    }

    fn look_back(&self) -> Result<Written, NoLookBack> {
        Err(NoLookBack::NotKept)
    }

    fn config(&self) -> String {
        String::new()
    }

    fn healthy(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn ready(&self) -> anyhow::Result<()> {
        Err(anyhow::anyhow!("the probes are not attached"))
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
                    // The server may have closed the connection.
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
                .expect("the server closes the connection after the client has finished")
        })
    });
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{answers:?}");
    // A request has at least 16 bytes, a response some hundreds.
    assert!(answers.len() <= 1024 * (1 + sent.len() / 16), "a longer response than the requests can cause");
});
