//! Requests that wait to be sent, up to a limit in bytes. What is too much costs the oldest: after an outage,
//! the latest connections are those that somebody asks for.

use std::{cell::RefCell, collections::VecDeque};

use hyper::body::Bytes;
use tokio::sync::Notify;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) body: Bytes,
    pub(super) spans: u64,
}

/// Requests in the order in which they were made.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: RefCell<Waiting>,
    more: Notify,
    most: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    /// For this many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: RefCell::default(), more: Notify::new(), most }
    }

    /// Adds a request. Returns how many spans were dropped to make room.
    pub(super) fn push(&self, request: Request) -> u64 {
        let mut waiting = self.waiting.borrow_mut();
        waiting.bytes += request.body.len();
        waiting.requests.push_back(request);
        let mut dropped = 0;
        while waiting.bytes > self.most {
            let Some(oldest) = waiting.requests.pop_front() else { break };
            waiting.bytes -= oldest.body.len();
            dropped += oldest.spans;
        }
        self.more.notify_one();
        dropped
    }

    /// Nothing more will be added.
    pub(super) fn close(&self) {
        self.waiting.borrow_mut().is_closed = true;
        self.more.notify_one();
    }

    /// Takes the oldest, as soon as there is one; `None` at the end.
    pub(super) async fn pop(&self) -> Option<Request> {
        loop {
            {
                let mut waiting = self.waiting.borrow_mut();
                if let Some(request) = waiting.requests.pop_front() {
                    waiting.bytes -= request.body.len();
                    return Some(request);
                }
                if waiting.is_closed {
                    return None;
                }
            }
            self.more.notified().await;
        }
    }

    /// Spans that wait.
    pub(super) fn spans(&self) -> u64 {
        self.waiting.borrow().requests.iter().map(|request| request.spans).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize, spans: u64) -> Request {
        Request { body: vec![0; bytes].into(), spans }
    }

    #[tokio::test]
    async fn oldest_makes_room_for_the_latest() {
        let queue = Queue::new(10);
        assert_eq!(
            [queue.push(request(4, 1)), queue.push(request(4, 2)), queue.push(request(6, 4))],
            [0, 0, 1]
        );
        assert_eq!(queue.spans(), 6);
        assert_eq!(queue.push(request(11, 8)), 14, "what never fits is dropped too");
        queue.push(request(10, 16));
        queue.close();
        assert_eq!(queue.pop().await, Some(request(10, 16)));
        assert_eq!(queue.pop().await, None);
    }
}
