//! The text of `/metrics`: rendered once for all clients that asked for the same form of it meanwhile, and
//! kept only while it is being sent.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use anyhow::Result;
use tokio::{
    sync::Mutex,
    time::{Duration, Instant, sleep_until},
};

use super::negotiation::Variant;

/// Shortest time between two renderings, of whatever form: it bounds the cost of scrapes, however many there
/// are.
const PACE: Duration = Duration::from_millis(25);
/// How long a text is kept for the clients that it is being sent to.
const KEPT: Duration = Duration::from_secs(10);
/// Most bytes of all texts that are kept; the newest is always kept.
const KEPT_BYTES: usize = 16 << 20;

#[derive(Default)]
pub(super) struct Renderings(Mutex<VecDeque<Rendering>>);

struct Rendering {
    begun: Instant,
    variant: Variant,
    text: Arc<[u8]>,
}

impl Renderings {
    /// A text whose rendering began after this call.
    ///
    /// # Errors
    /// That of `render`.
    pub(super) async fn fresh(
        &self,
        variant: Variant,
        render: impl Fn() -> Result<Vec<u8>>,
    ) -> Result<Weak<[u8]>> {
        let asked = Instant::now();
        let mut kept = self.0.lock().await;
        let fresh = kept.iter().rev().take_while(|rendering| rendering.begun > asked);
        if let Some(same) = fresh.filter(|rendering| rendering.variant == variant).last() {
            return Ok(Arc::downgrade(&same.text));
        }
        if let Some(newest) = kept.back() {
            sleep_until(newest.begun + PACE).await;
        }
        let begun = Instant::now();
        let text: Arc<[u8]> = render()?.into();
        let fresh = Arc::downgrade(&text);
        kept.push_back(Rendering { begun, variant, text });
        let mut bytes: usize = kept.iter().map(|rendering| rendering.text.len()).sum();
        while let [oldest, _, ..] = kept.make_contiguous()
            && (bytes > KEPT_BYTES || oldest.begun + KEPT < begun)
        {
            bytes -= oldest.text.len();
            kept.pop_front();
        }
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::advance;

    use super::*;
    use crate::exporter::metrics::Format;

    const PLAIN: Variant = Variant { format: Format::Text, gzip: false };

    #[tokio::test(start_paused = true)]
    async fn concurrent_clients_share_a_text_that_is_no_older_than_their_request() {
        let renderings = Renderings::default();
        let count = AtomicUsize::new(0);
        let render = || Ok(count.fetch_add(1, Ordering::Relaxed).to_string().into_bytes());
        let text = |fresh: Result<Weak<[u8]>>| {
            String::from_utf8_lossy(&fresh.unwrap().upgrade().unwrap()).into_owned()
        };
        let fresh = || renderings.fresh(PLAIN, render);
        assert_eq!(text(fresh().await), "0");
        let (a, b, c) = tokio::join!(fresh(), fresh(), fresh());
        assert_eq!([text(a), text(b), text(c)], ["1", "1", "1"]);
        assert_eq!(text(fresh().await), "2");

        // However many ask for each form, each is rendered once for them, and they share one pace.
        let begin = Instant::now();
        let packed = || renderings.fresh(Variant { gzip: true, ..PLAIN }, render);
        let (a, b, c, d) = tokio::join!(fresh(), packed(), fresh(), packed());
        assert_eq!([text(a), text(b), text(c), text(d)], ["3", "4", "3", "4"]);
        assert_eq!(begin.elapsed().as_millis(), PACE.as_millis() * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn kept_texts_are_bounded_in_bytes_and_time() {
        let renderings = Renderings::default();
        let render = || Ok(vec![b'x'; KEPT_BYTES / 4]);
        let mut texts = Vec::new();
        for _ in 0..6 {
            texts.push(renderings.fresh(PLAIN, render).await.unwrap());
        }
        let alive = |texts: &[Weak<[u8]>]| texts.iter().filter(|text| text.strong_count() > 0).count();
        assert_eq!(alive(&texts), 4);
        advance(KEPT * 2).await;
        texts.push(renderings.fresh(PLAIN, render).await.unwrap());
        assert_eq!(alive(&texts), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failure_is_returned_and_the_next_call_renders_again() {
        let renderings = Renderings::default();
        assert!(renderings.fresh(PLAIN, || anyhow::bail!("no totals")).await.is_err());
        assert!(renderings.fresh(PLAIN, || Ok(Vec::new())).await.is_ok());
    }
}
