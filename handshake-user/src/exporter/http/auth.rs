//! Basic authentication (RFC 7617) by bcrypt hashes. Checking one takes a tenth of a second, on purpose: it
//! runs beside the event loop, one at a time, and is remembered.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, anyhow};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{HeaderMap, header::AUTHORIZATION};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    task::spawn_blocking,
};

/// How many clients may wait for their check: further ones are told to come later, so that whoever guesses
/// passwords cannot make the others wait for long.
const WAITING: usize = 8;
/// The most credentials that are remembered.
const REMEMBERED: usize = 100;

/// Who may read the pages.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// Credentials that were right, by their [`Fingerprint`].
    right: Mutex<HashSet<Fingerprint>>,
    keys: [RandomState; 2],
    admitted: Semaphore,
    one: AsyncMutex<()>,
}

/// Of a name and a password, under a key that nobody knows: 128 bits, so that no other credentials that can
/// be tried have the same.
type Fingerprint = [u64; 2];

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Refused,
    /// Too many are waiting for theirs.
    Busy,
}

impl Users {
    /// Of names and bcrypt hashes, at least one.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self> {
        for (name, hash) in &hashes {
            bcrypt::HashParts::from_str(hash)
                .map_err(|_| anyhow!("basic_auth_users.{name}: not a bcrypt hash (htpasswd -nBC 10 \"\")"))?;
        }
        Ok(Self {
            hashes,
            right: Mutex::default(),
            keys: [RandomState::new(), RandomState::new()],
            admitted: Semaphore::new(WAITING),
            one: AsyncMutex::default(),
        })
    }

    pub(super) async fn verdict(self: &Arc<Self>, headers: &HeaderMap) -> Verdict {
        let Some((name, password)) = credentials(headers) else { return Verdict::Refused };
        let fingerprint = [0, 1].map(|key: usize| self.keys[key].hash_one((&name, &password)));
        if self.right.lock().unwrap_or_else(PoisonError::into_inner).contains(&fingerprint) {
            return Verdict::Granted;
        }
        let Ok(_admitted) = self.admitted.try_acquire() else { return Verdict::Busy };
        let _one = self.one.lock().await;
        let users = Arc::clone(self);
        let is_right = spawn_blocking(move || users.is_right(&name, &password)).await.unwrap_or(false);
        if !is_right {
            return Verdict::Refused;
        }
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.insert(fingerprint);
        Verdict::Granted
    }

    fn is_right(&self, name: &str, password: &[u8]) -> bool {
        // The same work for a name that does not exist: the time must not tell which do.
        let known = self.hashes.get(name);
        let hash = known.or_else(|| self.hashes.values().next());
        let matches = hash.is_some_and(|hash| bcrypt::verify(password, hash).unwrap_or(false));
        matches && known.is_some()
    }
}

fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    let name = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((name, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn users() -> Arc<Users> {
        let hash = bcrypt::hash("a:b", 4).unwrap();
        Arc::new(Users::new([("prometheus".to_owned(), hash)].into()).unwrap())
    }

    fn headers(value: &str) -> HeaderMap {
        [(AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    fn basic(credentials: &str) -> HeaderMap {
        headers(&format!("Basic {}", BASE64_STANDARD.encode(credentials)))
    }

    #[tokio::test]
    async fn only_the_right_name_and_password_are_granted() {
        let users = users();
        for (sent, expected) in [
            (basic("prometheus:a:b"), Verdict::Granted),
            (headers(&format!("bASIC {}", BASE64_STANDARD.encode("prometheus:a:b"))), Verdict::Granted),
            (basic("prometheus:a:"), Verdict::Refused),
            (basic("prometheu:a:b"), Verdict::Refused),
            (basic(":a:b"), Verdict::Refused),
            (basic("prometheus"), Verdict::Refused),
            (basic(""), Verdict::Refused),
            (HeaderMap::new(), Verdict::Refused),
            (headers("Basic"), Verdict::Refused),
            (headers("Basic !!!!"), Verdict::Refused),
            (headers("Bearer cHJvbWV0aGV1czphOmI="), Verdict::Refused),
            (basic("prometheus:a:b"), Verdict::Granted),
        ] {
            assert_eq!(users.verdict(&sent).await, expected, "{sent:?}");
        }
        assert_eq!(users.right.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn guesses_do_not_queue_up_and_known_credentials_do_not_wait() {
        let users = users();
        assert_eq!(users.verdict(&basic("prometheus:a:b")).await, Verdict::Granted);
        let guesses: Vec<_> = (0..WAITING * 4).map(|guess| basic(&format!("prometheus:{guess}"))).collect();
        let slow = users.one.lock().await;
        let mut tasks = Vec::new();
        for guess in guesses {
            let users = Arc::clone(&users);
            tasks.push(tokio::spawn(async move { users.verdict(&guess).await }));
        }
        tokio::task::yield_now().await;
        assert_eq!(users.verdict(&basic("prometheus:a:b")).await, Verdict::Granted);
        drop(slow);
        let mut verdicts = Vec::new();
        for task in tasks {
            verdicts.push(task.await.unwrap());
        }
        let busy = verdicts.iter().filter(|verdict| **verdict == Verdict::Busy).count();
        assert_eq!(busy, WAITING * 3);
        assert!(!verdicts.contains(&Verdict::Granted));
    }
}
