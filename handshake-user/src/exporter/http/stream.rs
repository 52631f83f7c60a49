//! The socket of one connection: enforces its deadline, and closes it so that nothing stays behind in the
//! kernel.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep_until},
};

use super::activity::Activity;

pub(super) struct Stream {
    tcp: TcpStream,
    activity: Arc<Activity>,
    timer: Pin<Box<Sleep>>,
    /// The peer has closed as well.
    closed: bool,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, activity: Arc<Activity>) -> Self {
        let timer = Box::pin(sleep_until(activity.deadline()));
        Self { tcp, activity, timer, closed: false }
    }

    /// The result of a pending operation: an error once the deadline has passed.
    fn pending<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let deadline = self.activity.deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn written(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => self.pending(cx),
            Poll::Ready(result) => {
                if result.is_ok() {
                    self.activity.sent();
                }
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.tcp).poll_read(cx, buffer) {
            Poll::Pending => self.pending(cx),
            ready @ Poll::Ready(_) => {
                if buffer.filled().len() > before {
                    self.activity.received();
                }
                ready
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.flushed();
        Poll::Ready(Ok(()))
    }

    /// Waits for the peer's FIN: to close with bytes unread would send a RST, which takes the answer back
    /// (RFC 9112, 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
        self.activity.closing();
        let mut discarded = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.tcp).poll_read(cx, &mut buffer) {
                Poll::Pending => return self.pending(cx),
                Poll::Ready(result) => result?,
            }
            if buffer.filled().is_empty() {
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.closed {
            // A RST: the kernel would otherwise keep what the peer does not read. Where that is refused, it
            // does.
            let _ = self.tcp.set_zero_linger();
        }
    }
}
