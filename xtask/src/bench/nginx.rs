//! nginx with and without TLS, in the network namespace of the thread that starts it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// Of TLS. The namespace is new: every port is free.
pub(super) const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4433));
pub(super) const PLAIN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
/// How often it is tried whether it is up, and the pause in between.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// One worker that answers every request with an empty page. Ends when dropped.
pub(super) struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Makes a certificate and starts the server with it.
    pub(super) fn start() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("handshake-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        process::read(
            Command::new("openssl").current_dir(&folder).args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -batch -days 2 -subj /CN=bench \
                 -keyout key.pem -out certificate.pem"
                    .split(' '),
            ),
            "making a certificate",
            "is openssl as Debian builds it?",
        )?;
        fs::write(folder.join("nginx.conf"), configuration()).context("cannot write nginx.conf")?;
        let nginx = process::find_program("nginx").context("there is no nginx")?;
        // It ends with xtask, even if xtask is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(nginx)
            .arg("-p")
            .arg(&folder)
            .args(["-c", "nginx.conf", "-e", "errors"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nginx by setpriv (util-linux)")?;
        let mut server = Self { child, folder };
        for _ in 0..TRIES {
            if TcpStream::connect(ADDRESS).is_ok() {
                return Ok(server);
            }
            let ended = server.child.try_wait().context("cannot wait for nginx")?;
            ensure!(ended.is_none(), "nginx ended at once; see its message above");
            thread::sleep(PAUSE);
        }
        anyhow::bail!("nginx does not listen on {ADDRESS}")
    }

    /// CPU time so far, seconds (`/proc/PID/schedstat`: the time on a CPU, nanoseconds).
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/schedstat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let nanoseconds = text.split(' ').next().unwrap_or_default();
        Ok(nanoseconds.parse::<f64>().with_context(|| format!("{path} has no time in it"))? / 1e9)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn configuration() -> String {
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {what};\n"))
        .concat();
    format!(
        "daemon off; master_process off; pid pid; error_log errors;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; {folders}\
         ssl_certificate certificate.pem; ssl_certificate_key key.pem; ssl_protocols TLSv1.2 TLSv1.3;\n\
         server {{ listen {ADDRESS} ssl backlog=4096; listen {PLAIN} backlog=4096; \
         location / {{ return 204; }} }} }}\n"
    )
}
