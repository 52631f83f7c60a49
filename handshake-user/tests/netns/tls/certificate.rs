//! A self-signed certificate, made once, in every format that the programs need.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

pub(crate) const NAME: &str = "example.org";

pub(crate) struct Certificate {
    pub(crate) key: PathBuf,
    pub(crate) chain: PathBuf,
    /// The chain and the key in one file.
    pub(crate) pair: PathBuf,
    /// Both as PKCS #12, with the password that the Java program has.
    pub(crate) store: PathBuf,
}

impl Certificate {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Certificate> = OnceLock::new();
        SHARED.get_or_init(|| Self::make(Path::new(env!("CARGO_TARGET_TMPDIR"))))
    }

    /// Makes it if no earlier run has. If several runs make it at once, the first wins.
    fn make(folder: &Path) -> Self {
        let home = folder.join("certificate");
        if !home.exists() {
            let making = tempfile::tempdir_in(folder).unwrap();
            Self::within(making.path()).write();
            let _ = fs::rename(making.path(), &home);
        }
        let this = Self::within(&home);
        assert!(this.store.exists(), "no certificate in {}", home.display());
        this
    }

    /// Until when it is valid, by OpenSSL.
    pub(crate) fn not_after(&self) -> String {
        not_after(&self.chain)
    }

    fn within(folder: &Path) -> Self {
        let [key, chain, pair, store] =
            ["key.pem", "chain.pem", "pair.pem", "store.p12"].map(|name| folder.join(name));
        Self { key, chain, pair, store }
    }

    fn write(&self) {
        let Self { key, chain, pair, store } = self;
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "3650",
        ]);
        command.args(["-subj", &format!("/CN={NAME}"), "-addext", &format!("subjectAltName=DNS:{NAME}")]);
        run(command.arg("-keyout").arg(key).arg("-out").arg(chain));
        fs::write(pair, [fs::read(chain).unwrap(), fs::read(key).unwrap()].concat()).unwrap();
        let mut command = Command::new("openssl");
        command.args(["pkcs12", "-export", "-passout", "pass:handshake", "-in"]).arg(pair).arg("-out");
        run(command.arg(store));
    }
}

/// Until when the certificate in this file is valid, by OpenSSL, as records say it.
pub(crate) fn not_after(file: &Path) -> String {
    let mut command = Command::new("openssl");
    let out = command.args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"]).arg(file).output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    let date = text.trim().strip_prefix("notAfter=").unwrap_or_else(|| panic!("no date in {text:?}"));
    date.replace(' ', "T")
}

fn run(command: &mut Command) {
    let out = command.output().expect("openssl, which this test needs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
