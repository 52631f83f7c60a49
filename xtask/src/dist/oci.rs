//! An OCI image (image-spec 1.1) from scratch: an image layout in a tar file, whose only layer is the static
//! program.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{gzip, sha256, tar};
use crate::target::Target;

/// Writes the image to `archive`.
pub(super) fn image(binary: &Path, target: Target, version: &str, date: &str, archive: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("cannot create a temporary folder")?;
    let layer = work.path().join("layer.tar");
    let root = work.path().join("root");
    program(binary, &root)?;
    tar(date, &layer, &[], &root)?;
    // Of the layer as it is unpacked.
    let unpacked = sha256(&layer)?;
    gzip(&layer)?;

    let layout = Layout { folder: work.path().join("layout") };
    let blobs = layout.blobs();
    fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    let layer = layout.add(&layer.with_extension("tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip")?;
    let config = layout.add_json(&config(target, &unpacked), "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": [layer],
        "annotations": {
            "org.opencontainers.image.title": "handshake",
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        },
    });
    let mut manifest = layout.add_json(&manifest, manifest_type)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": format!("handshake:{version}")});
    manifest["platform"] = json!({"os": "linux", "architecture": target.debian()});
    layout.write(
        "index.json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        }),
    )?;
    layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    tar(date, archive, &[], &layout.folder)
}

/// The only file of the image.
fn program(binary: &Path, root: &Path) -> Result<()> {
    let folder = root.join("usr/bin");
    let program = folder.join("handshake");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::copy(binary, &program))
        .and_then(|_| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot copy {} to {}", binary.display(), program.display()))
}

fn config(target: Target, layer: &str) -> Value {
    json!({
        // Go's names of processors, which are Debian's.
        "architecture": target.debian(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/handshake"],
            "Cmd": ["daemon", "--listen", "[::]:9966"],
            "ExposedPorts": {"9966/tcp": {}},
            "StopSignal": "SIGTERM",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

/// A folder in the form of an OCI image layout.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn blobs(&self) -> PathBuf {
        self.folder.join("blobs/sha256")
    }

    /// Moves a file to the blobs. Returns its descriptor.
    fn add(&self, file: &Path, media_type: &str) -> Result<Value> {
        let digest = sha256(file)?;
        let blob = self.blobs().join(&digest);
        fs::rename(file, &blob).with_context(|| format!("cannot write {}", blob.display()))?;
        let size = fs::metadata(&blob).with_context(|| format!("cannot read {}", blob.display()))?.len();
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
    }

    fn add_json(&self, value: &Value, media_type: &str) -> Result<Value> {
        self.write("new", value)?;
        self.add(&self.folder.join("new"), media_type)
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let file = self.folder.join(name);
        fs::write(&file, value.to_string()).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process;

    fn unpacked(archive: &Path, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(archive).arg("-C").arg(folder);
        process::read(&mut tar, "unpacking", "").unwrap();
    }

    #[test]
    fn digests_lead_from_the_index_to_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let (binary, archive) = (folder.path().join("binary"), folder.path().join("image.tar"));
        fs::write(&binary, "program").unwrap();
        image(&binary, Target::Aarch64, "1.2.3", "1700000000", &archive).unwrap();
        let layout = folder.path().join("layout");
        unpacked(&archive, &layout);

        let read = |file: &Path| serde_json::from_slice::<Value>(&fs::read(file).unwrap()).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let blob = layout.join("blobs/sha256").join(digest);
            assert_eq!(sha256(&blob).unwrap(), digest);
            assert_eq!(descriptor["size"], fs::metadata(&blob).unwrap().len());
            blob
        };
        let index = read(&layout.join("index.json"));
        assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");
        let manifest = read(&blob(&index["manifests"][0]));
        let config = read(&blob(&manifest["config"]));
        assert_eq!(config["architecture"], "arm64");
        let root = folder.path().join("root");
        unpacked(&blob(&manifest["layers"][0]), &root);
        assert_eq!(fs::read_to_string(root.join("usr/bin/handshake")).unwrap(), "program");

        let layer = folder.path().join("layer.tar.gz");
        fs::copy(blob(&manifest["layers"][0]), &layer).unwrap();
        process::read(Command::new("gzip").arg("-d").arg(&layer), "unpacking", "").unwrap();
        let digest = sha256(&layer.with_extension("")).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{digest}"));

        let again = folder.path().join("again.tar");
        image(&binary, Target::Aarch64, "1.2.3", "1700000000", &again).unwrap();
        assert_eq!(fs::read(&archive).unwrap(), fs::read(&again).unwrap());
    }
}
