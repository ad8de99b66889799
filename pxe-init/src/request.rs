//! A key for one boot, and a request for its certificate: PKCS #10 (RFC 2986), without a name, because the token says
//! which node it is.

use ring::error::Unspecified;
use ring::pkcs8::Document;
use ring::rand::SecureRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

/// SubjectPublicKeyInfo of a P-256 key (RFC 5480), up to the point itself.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// AlgorithmIdentifier ecdsa-with-SHA256 (RFC 5758).
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// The key in PKCS #8, and the request in DER.
pub(crate) fn make(random: &dyn SecureRandom) -> Result<(Document, Vec<u8>), Unspecified> {
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, random)?;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), random).map_err(|_| Unspecified)?;
    // Version 0, an empty name, the key, no attributes.
    let version_and_name = [0x02, 0x01, 0x00, 0x30, 0x00];
    let info = [&version_and_name[..], &P256, key.public_key().as_ref(), &[0xa0, 0x00]].concat();
    let info = element(0x30, &info);
    let signature = key.sign(random, &info)?;
    // A bit string, of whole bytes.
    let signature = element(0x03, &[&[0], signature.as_ref()].concat());
    Ok((document, element(0x30, &[&info[..], &ECDSA_SHA256, &signature].concat())))
}

/// Tag, length and contents, of fewer than 256 bytes.
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len() as u8;
    let head: &[u8] = if len < 128 { &[tag, len] } else { &[tag, 0x81, len] };
    [head, contents].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use ring::rand::SystemRandom;

    use super::*;

    /// Verified with OpenSSL.
    #[test]
    fn a_request_is_what_openssl_verifies() {
        let (_, request) = make(&SystemRandom::new()).unwrap();
        let mut openssl = Command::new("openssl")
            .args(["req", "-inform", "DER", "-verify", "-text", "-noout"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        openssl.stdin.take().unwrap().write_all(&request).unwrap();
        let judged = openssl.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&judged.stdout) + String::from_utf8_lossy(&judged.stderr);
        assert!(judged.status.success() && words.contains("verify OK"), "{words}");
        assert!(words.contains("NIST CURVE: P-256"), "{words}");
    }
}
