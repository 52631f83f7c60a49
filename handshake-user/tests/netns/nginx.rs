//! nginx with one `server` block, in the foreground.

use std::{fs, process::Command};

use tempfile::TempDir;

use crate::testbed::{Testbed, packet::Side};

/// The command, and the folder that its configuration and temporary files are in.
pub(crate) fn command(bed: &Testbed, side: Side, server: &str) -> (Command, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let configuration = format!(
        "daemon off; master_process off; pid {path}/pid; error_log {path}/log; events {{}} \
         http {{ access_log off; \
           client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c; \
           uwsgi_temp_path {path}/d; scgi_temp_path {path}/e; server {{ {server} }} }}"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = bed.command(side, "nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
    (command, folder)
}
