module handshake.test/peer

go 1.19
