// Node.js: its own OpenSSL, linked into the program, with memory BIOs. A client connects once for every line
// of its standard input. The command line is that of programs/python/settings.py.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const tls = require('node:tls');
const { constants } = require('node:crypto');

const [role, host, port, ...pairs] = process.argv.slice(2);
const settings = Object.fromEntries(pairs.map((pair) => pair.split('=', 2)));
const version = `TLSv${settings.version}`;
const common = { minVersion: version, maxVersion: version };

function serve() {
  const sessions = new Map();
  const server = tls.createServer(
    {
      ...common,
      cert: fs.readFileSync(settings.certificate),
      key: fs.readFileSync(settings.key),
      ecdhCurve: settings.groups ?? 'auto',
      secureOptions: settings.tickets === 'no' ? constants.SSL_OP_NO_TICKET : 0,
    },
    (socket) => {
      socket.on('error', () => {});
      socket.once('data', () =>
        socket.end('HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n'));
    },
  );
  server.on('newSession', (id, data, done) => { sessions.set(id.toString('hex'), data); done(); });
  server.on('resumeSession', (id, done) => done(null, sessions.get(id.toString('hex')) ?? null));
  server.on('tlsClientError', (error) => console.error(error.message));
  server.listen(Number(port), host);
}

async function connect() {
  let session;
  const trust = settings.trust ? fs.readFileSync(settings.trust) : [];
  const once = () => new Promise((done) => {
    // Includes TCP's handshake: the event at its end comes too late to start the clock.
    const start = process.hrtime.bigint();
    const socket = tls.connect({ ...common, host, port: Number(port), servername: 'example.org', ca: trust, session });
    socket.once('secureConnect', () => {
      console.log(String((process.hrtime.bigint() - start) / 1000n));
      socket.write('GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n');
    });
    socket.on('session', (ticket) => { session = ticket; });
    socket.on('data', () => {});
    socket.on('error', (error) => console.log(error.message));
    socket.on('close', done);
  });
  for await (const _ of readline.createInterface({ input: process.stdin })) await once();
}

if (role === 'server') serve(); else connect();
