//! The handshake: each end proves that it knows the computation's secret, and the secret never travels.
//!
//! ```text
//! server                                   client
//! Challenge { version, nonce }      ->
//!                                   <-     Proof { version, role, nonce, mac }
//! Welcome { mac }                   ->
//! ```
//! `mac` is HMAC-SHA-256 (RFC 2104) under the secret, over a label that names the direction, the version, the role and
//! both nonces: neither an old answer nor a reflected one is of use. The caller supplies nonces from a random source
//! (getrandom(2)); this module does no I/O. These three messages keep their form in every version of the protocol.
use crate::message::VERSION;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// A nonce: 32 random bytes, used once.
pub type Nonce = [u8; 32];

/// What the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A process: goes on with [`FromProcess`](crate::message::FromProcess), `Join` first.
    Process,
    /// A command: goes on with [`Request`](crate::command::Request).
    Command,
}

/// The server's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Its [`VERSION`].
    pub version: u32,
    /// Random.
    pub nonce: Nonce,
}

/// The client's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Its [`VERSION`].
    pub version: u32,
    /// What it is.
    pub role: Role,
    /// Random.
    pub nonce: Nonce,
    /// Proof that it knows the secret.
    pub mac: [u8; 32],
}

/// The server's answer to a right proof; it closes the connection after a wrong one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Proof that the server knows the secret too.
    pub mac: [u8; 32],
}

/// Why the other end is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Protocol versions differ.
    #[error(
        "the other end speaks protocol version {theirs}, this one {VERSION}: use one version of slackwater throughout"
    )]
    Version {
        /// The other end's.
        theirs: u32,
    },
    /// The proof is wrong.
    #[error("the other end does not know the computation's secret")]
    Secret,
}

/// The computation's secret: 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// From random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes: what a restarted process is handed.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From the content of the secret's file: 64 hexadecimal digits, white space around them allowed.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
        let text = text.trim_ascii();
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// The secret's file's content.
    #[must_use]
    pub fn to_hex(&self) -> [u8; 64] {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        text
    }

    fn mac(&self, label: &[u8], role: Role, server: &Nonce, client: &Nonce) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(label);
        mac.update(&VERSION.to_le_bytes());
        mac.update(&[match role {
            Role::Process => 1,
            Role::Command => 2,
        }]);
        mac.update(server);
        mac.update(client);
        Some(mac)
    }

    fn client_mac(&self, role: Role, server: &Nonce, client: &Nonce) -> Option<Hmac<Sha256>> {
        self.mac(b"slackwater client", role, server, client)
    }

    fn server_mac(&self, role: Role, server: &Nonce, client: &Nonce) -> Option<Hmac<Sha256>> {
        self.mac(b"slackwater server", role, server, client)
    }
}

/// Server: opens the handshake with a fresh `nonce`.
#[must_use]
pub const fn challenge(nonce: Nonce) -> Challenge {
    Challenge { version: VERSION, nonce }
}

/// Client: answers the challenge with a fresh `nonce`.
///
/// # Errors
/// [`AuthError::Version`].
pub fn prove(secret: &Secret, challenge: &Challenge, role: Role, nonce: Nonce) -> Result<Proof, AuthError> {
    if challenge.version != VERSION {
        return Err(AuthError::Version { theirs: challenge.version });
    }
    let mac = secret.client_mac(role, &challenge.nonce, &nonce).ok_or(AuthError::Secret)?;
    Ok(Proof { version: VERSION, role, nonce, mac: mac.finalize().into_bytes().into() })
}

/// Server: examines the client's answer to the challenge that was sent to it. Compares in constant time.
///
/// # Errors
/// When the client must be turned away.
pub fn examine(secret: &Secret, sent: &Nonce, proof: &Proof) -> Result<Welcome, AuthError> {
    if proof.version != VERSION {
        return Err(AuthError::Version { theirs: proof.version });
    }
    let expected = secret.client_mac(proof.role, sent, &proof.nonce).ok_or(AuthError::Secret)?;
    expected.verify_slice(&proof.mac).map_err(|_| AuthError::Secret)?;
    let mac = secret.server_mac(proof.role, sent, &proof.nonce).ok_or(AuthError::Secret)?;
    Ok(Welcome { mac: mac.finalize().into_bytes().into() })
}

/// Client: examines the server's answer. Compares in constant time.
///
/// # Errors
/// When the server is not ours: close the connection.
pub fn confirm(secret: &Secret, challenge: &Challenge, proof: &Proof, welcome: &Welcome) -> Result<(), AuthError> {
    let expected = secret.server_mac(proof.role, &challenge.nonce, &proof.nonce).ok_or(AuthError::Secret)?;
    expected.verify_slice(&welcome.mac).map_err(|_| AuthError::Secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret::new([7; 32]);

    #[test]
    fn both_ends_agree() {
        let challenge = challenge([1; 32]);
        let proof = prove(&SECRET, &challenge, Role::Process, [2; 32]).unwrap();
        let welcome = examine(&SECRET, &challenge.nonce, &proof).unwrap();
        assert_eq!(confirm(&SECRET, &challenge, &proof, &welcome), Ok(()));
    }

    #[test]
    fn wrong_secret_replay_reflection_and_another_role_are_refused() {
        let other = Secret::new([8; 32]);
        let challenge = challenge([1; 32]);
        let proof = prove(&other, &challenge, Role::Process, [2; 32]).unwrap();
        assert_eq!(examine(&SECRET, &challenge.nonce, &proof), Err(AuthError::Secret));

        let proof = prove(&SECRET, &challenge, Role::Process, [2; 32]).unwrap();
        assert_eq!(examine(&SECRET, &[3; 32], &proof), Err(AuthError::Secret), "answer to an older challenge");
        let as_command = Proof { role: Role::Command, ..proof.clone() };
        assert_eq!(examine(&SECRET, &challenge.nonce, &as_command), Err(AuthError::Secret));
        let reflected = Welcome { mac: proof.mac };
        assert_eq!(confirm(&SECRET, &challenge, &proof, &reflected), Err(AuthError::Secret));
    }

    #[test]
    fn another_version_is_named() {
        let theirs = VERSION + 1;
        let challenge = Challenge { version: theirs, nonce: [1; 32] };
        assert_eq!(prove(&SECRET, &challenge, Role::Process, [2; 32]), Err(AuthError::Version { theirs }));
        let proof = Proof { version: theirs, role: Role::Process, nonce: [2; 32], mac: [0; 32] };
        assert_eq!(examine(&SECRET, &[1; 32], &proof), Err(AuthError::Version { theirs }));
    }

    #[test]
    fn the_secret_reads_back_and_is_never_shown() {
        let secret = Secret::new(core::array::from_fn(|i| (i * 9) as u8));
        assert_eq!(Secret::from_hex(&secret.to_hex()), Some(secret.clone()));
        assert_eq!(Secret::from_hex(b"12"), None);
        assert_eq!(Secret::from_hex(&[b'g'; 64]), None);
        assert_eq!(alloc::format!("{secret:?}"), "Secret(..)");
    }
}
