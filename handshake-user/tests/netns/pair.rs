//! An established connection, both of whose ends the test holds.

use std::{io::Write, mem::MaybeUninit};

use socket2::Socket;

use crate::{
    case::pause,
    socket,
    testbed::{capture::Connection, packet::Side},
};

pub(crate) struct Pair {
    pub(crate) client: Socket,
    pub(crate) server: Socket,
    pub(crate) connection: Connection,
}

impl Pair {
    /// The connection that this client has just opened, or is opening.
    pub(crate) fn accepted(client: Socket, listener: &Socket) -> Self {
        let (server, address) = listener.accept().unwrap();
        server.set_read_timeout(client.read_timeout().unwrap()).unwrap();
        let connection = Connection {
            client: address.as_socket().unwrap(),
            server: server.local_addr().unwrap().as_socket().unwrap(),
        };
        Self { client, server, connection }
    }

    /// The socket of that side, then the other one.
    pub(crate) fn split(self, first: Side) -> (Socket, Socket) {
        match first {
            Side::Client => (self.client, self.server),
            Side::Server => (self.server, self.client),
        }
    }

    /// Sends data both ways, so that both ends leave the quick-ACK mode in which connections start.
    pub(crate) fn talk(&self) {
        for _ in 0..3 {
            for (mut from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
                from.write_all(b"some data").unwrap();
                socket::await_input(to);
                to.recv(&mut [MaybeUninit::uninit(); 64]).unwrap();
            }
        }
    }

    /// [`Self::finish`], after a pause in milliseconds.
    pub(crate) fn finish_after(self, count: u64) -> Connection {
        pause(count);
        self.finish()
    }

    /// An ordinary close: the client closes, the server sees it and closes too.
    pub(crate) fn finish(self) -> Connection {
        drop(self.client);
        socket::drain(&self.server);
        drop(self.server);
        self.connection
    }
}
