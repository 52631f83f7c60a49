//! The body of a response: a whole page, or the metrics in pieces.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use hyper::body::{Bytes, Frame, SizeHint};
use thiserror::Error;

use super::activity::Activity;

/// How much of a text a connection copies at a time, so that slow readers of long texts do not add up.
pub(super) const PIECE: usize = 16 * 1024;

/// The text was dropped in favour of newer ones because it was read too slowly.
#[derive(Debug, Error)]
#[error("the metrics were not read in time")]
pub(super) struct Stale;

pub(super) struct Body {
    content: Content,
    /// Notified when nothing is left to send.
    activity: Arc<Activity>,
}

enum Content {
    Page(Bytes),
    Shared { text: Weak<[u8]>, sent: usize, length: usize },
}

impl Body {
    pub(super) fn page(text: impl Into<Bytes>, activity: &Arc<Activity>) -> Self {
        Self { content: Content::Page(text.into()), activity: Arc::clone(activity) }
    }

    pub(super) fn shared(text: Weak<[u8]>, activity: &Arc<Activity>) -> Self {
        let length = text.upgrade().map_or(0, |text| text.len());
        let content = Content::Shared { text, sent: 0, length };
        Self { content, activity: Arc::clone(activity) }
    }

    fn left(&self) -> usize {
        match &self.content {
            Content::Page(text) => text.len(),
            Content::Shared { sent, length, .. } => length - sent,
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Stale;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Stale>>> {
        if self.left() == 0 {
            return Poll::Ready(None);
        }
        let piece = match &mut self.content {
            Content::Page(text) => std::mem::take(text),
            Content::Shared { text, sent, length } => {
                let Some(text) = text.upgrade() else { return Poll::Ready(Some(Err(Stale))) };
                let piece = Bytes::copy_from_slice(&text[*sent..(*sent + PIECE).min(*length)]);
                *sent += piece.len();
                piece
            }
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left() as u64)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.activity.buffered();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn shared_text_comes_in_pieces_and_fails_once_it_is_dropped() {
        let activity = Arc::new(Activity::new());
        let text: Arc<[u8]> = b"0123456789".repeat(PIECE / 4).into();
        let whole = Body::shared(Arc::downgrade(&text), &activity).collect().await.unwrap().to_bytes();
        assert_eq!(whole, &text[..]);

        let mut body = Body::shared(Arc::downgrade(&text), &activity);
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece.len(), PIECE);
        drop(text);
        assert!(body.frame().await.unwrap().is_err());
    }
}
