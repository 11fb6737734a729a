//! Random tokens, none of which may be accepted or bring the token_verifier down.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn fuzz_tokens(parts in crate::fuzzing::inputs("tokens")) {
        let text = String::from_utf8_lossy(&parts);
        let mut parts: Vec<String> = text.split("}.").map(base64).collect();
        parts.push(base64("signature"));
        let token = parts.join(".");
        let ed25519 = TokenVerifier::new(&public_key(&pair(1)), None, None);
        prop_assert!(present_token(&secret_verifier(), &token).is_err());
        prop_assert!(present_token(&ed25519, &token).is_err());
        // Signed, it is taken or refused.
        let message = parts[..parts.len() - 1].join(".");
        let _ = present_token(&secret_verifier(), &Signer::Hmac(SECRET.as_bytes()).sign(&message));
    }

    #[test]
    fn random_bytes_are_never_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let ed25519 = TokenVerifier::new(&public_key(&pair(1)), None, None);
        for token_verifier in [secret_verifier(), ed25519] {
            prop_assert!(token_verifier.verify(Some(&text), now()).is_err());
            prop_assert!(present_token(&token_verifier, &text).is_err());
            prop_assert!(present_token(&token_verifier, &base64(&bytes)).is_err());
        }
    }

    #[test]
    fn three_random_parts_are_never_accepted(
        header in "\\{\"alg\":\"(HS256|EdDSA)\"(,\"[a-z]{1,5}\":[0-9]{1,3})?\\}|\\PC{0,30}",
        claims in "\\{\"exp\":[0-9]{1,20}(,\"sub\":\"[a-z]{1,5}\")?\\}|\\PC{0,30}",
        signature in proptest::collection::vec(any::<u8>(), 0..70),
    ) {
        let token = format!("{}.{}.{}", base64(header), base64(claims), base64(signature));
        let ed25519 = TokenVerifier::new(&public_key(&pair(1)), None, None);
        prop_assert!(present_token(&secret_verifier(), &token).is_err());
        prop_assert!(present_token(&ed25519, &token).is_err());
    }

    #[test]
    fn random_claims_that_are_signed_never_panic(claims in "\\PC{0,80}|[\\{\\}\\[\\]\":,a-z0-9.e-]{0,80}") {
        let message = format!("{}.{}", base64("{\"alg\":\"HS256\"}"), base64(claims));
        let token = Signer::Hmac(SECRET.as_bytes()).sign(&message);
        let _ = present_token(&secret_verifier(), &token);
    }

    #[test]
    fn a_token_with_one_character_changed_is_refused(at in any::<proptest::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let mut token = good_token();
        let at = at.index(token.len());
        prop_assume!(token[at..=at] != to);
        token.replace_range(at..=at, &to);
        prop_assert!(present_token(&secret_verifier(), &token).is_err());
    }
}
