//! rustls, client and server, which cannot be probed. A client connects once for every line of its
//! standard input. The command line is that of `programs/python/settings.py`.

use std::{
    collections::HashMap,
    env,
    error::Error,
    io::{self, BufRead, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Instant,
};

use nix::libc;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme,
    Stream, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    version::{TLS12, TLS13},
};
use socket2::{Domain, Protocol, Socket, Type};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Settings {
    address: SocketAddr,
    options: HashMap<String, String>,
}

impl Settings {
    fn get(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    fn path(&self, name: &str) -> Result<&str> {
        Ok(self.get(name).ok_or_else(|| format!("{name}= is missing"))?)
    }

    fn versions(&self) -> [&'static SupportedProtocolVersion; 1] {
        if self.is("version", "1.2") { [&TLS12] } else { [&TLS13] }
    }

    fn socket(&self) -> Result<Socket> {
        Ok(Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))?)
    }
}

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().ok_or("ROLE ADDRESS PORT [NAME=VALUE …]");
    let role = next()?;
    let address = SocketAddr::new(next()?.parse::<IpAddr>()?, next()?.parse()?);
    let pairs =
        arguments.filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.into(), value.into())));
    let settings = Settings { address, options: pairs.collect() };
    if role == "server" { serve(&settings) } else { connect(&settings) }
}

fn serve(settings: &Settings) -> Result<()> {
    let mut provider = ring::default_provider();
    if settings.is("groups", "P-384") {
        provider.kx_groups = vec![ring::kx_group::SECP384R1];
    }
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&settings.versions())?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(settings.path("certificate")?)?],
            PrivateKeyDer::from_pem_file(settings.path("key")?)?,
        )?;
    if settings.is("early_data", "yes") {
        // Early data needs sessions that the server stores, which is the default.
        config.max_early_data_size = 4096;
    } else if !settings.is("tickets", "no") {
        config.ticketer = ring::Ticketer::new()?;
    }
    let config = Arc::new(config);

    let socket = settings.socket()?;
    socket.set_reuse_address(true)?;
    if settings.is("fast_open", "yes") {
        set_tcp_option(&socket, libc::TCP_FASTOPEN, 16)?;
    }
    socket.bind(&settings.address.into())?;
    socket.listen(16)?;
    let listener: TcpListener = socket.into();
    for connection in listener.incoming() {
        if let Err(error) = answer(connection?, Arc::clone(&config)) {
            eprintln!("{error}");
        }
    }
    Ok(())
}

fn answer(mut socket: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut tls = ServerConnection::new(config)?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") || tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
        if let Some(mut early) = tls.early_data() {
            early.read_to_end(&mut request)?;
        }
        let mut buffer = [0; 4096];
        match tls.reader().read(&mut buffer) {
            Ok(0) => return Err("closed before the request".into()),
            Ok(length) => request.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    tls.writer().write_all(ANSWER)?;
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

fn connect(settings: &Settings) -> Result<()> {
    let provider = Arc::new(ring::default_provider());
    let trusted = settings.get("trust").map(CertificateDer::from_pem_file).transpose()?;
    let verifier = Pinned { trusted, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&settings.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.enable_early_data = settings.is("early_data", "yes");
    let config = Arc::new(config);
    for line in io::stdin().lock().lines() {
        line?;
        if let Err(error) = ask(settings, Arc::clone(&config)) {
            println!("{error}");
        }
    }
    Ok(())
}

fn ask(settings: &Settings, config: Arc<ClientConfig>) -> Result<()> {
    let socket = settings.socket()?;
    socket.set_tcp_nodelay(true)?;
    if settings.is("fast_open", "yes") {
        set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1)?;
    }
    socket.connect(&settings.address.into())?;
    let mut socket: TcpStream = socket.into();
    let start = Instant::now();
    let mut tls = ClientConnection::new(config, ServerName::try_from("example.org")?)?;
    let sent_early = match tls.early_data() {
        Some(mut early) => early.write(REQUEST)? == REQUEST.len(),
        None => false,
    };
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    println!("{}", start.elapsed().as_micros());
    if !(sent_early && tls.is_early_data_accepted()) {
        tls.writer().write_all(REQUEST)?;
    }
    let mut stream = Stream::new(&mut tls, &mut socket);
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>())?;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the pointer and the length describe an integer that outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// Trusts a single self-signed certificate.
#[derive(Debug)]
struct Pinned {
    trusted: Option<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.trusted.as_ref() == Some(end) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
