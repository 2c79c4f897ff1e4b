//! Byte strings inside lists, serialized as wholes: serde takes a `Vec<u8>` for a list of numbers and goes byte by byte,
//! and a computation exchanges hundreds of thousands of keys while it stands still. postcard's bytes on the wire are the
//! same either way.

/// For `Vec<(String, Vec<u8>)>`.
pub mod keys {
    use alloc::{string::String, vec::Vec};
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    /// As serde's `with` wants it.
    pub fn serialize<S: Serializer>(keys: &[(String, Vec<u8>)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(|(scope, key)| (scope, Bytes::new(key))))
    }

    /// As serde's `with` wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Vec<u8>)>, D::Error> {
        let keys: Vec<(String, ByteBuf)> = Deserialize::deserialize(deserializer)?;
        Ok(keys.into_iter().map(|(scope, key)| (scope, key.into_vec())).collect())
    }
}

/// For `Vec<Option<Vec<u8>>>`.
pub mod values {
    use alloc::vec::Vec;
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    /// As serde's `with` wants it.
    pub fn serialize<S: Serializer>(values: &[Option<Vec<u8>>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.as_ref().map(|value| Bytes::new(value))))
    }

    /// As serde's `with` wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Option<Vec<u8>>>, D::Error> {
        let values: Vec<Option<ByteBuf>> = Deserialize::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.map(ByteBuf::into_vec)).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::message::{Entry, FromProcess, ToProcess};
    use alloc::vec;

    /// The form that plain `Vec<u8>` has in postcard: a length, then the bytes.
    #[test]
    fn the_wire_form_is_that_of_lists() {
        let entry = Entry { scope: "s".into(), key: vec![7, 8], value: vec![] };
        assert_eq!(postcard::to_allocvec(&entry).unwrap(), [1, b's', 2, 7, 8, 0]);
        let query = FromProcess::Query { keys: vec![("s".into(), vec![200]), ("".into(), vec![])] };
        let bytes = postcard::to_allocvec(&query).unwrap();
        assert_eq!(bytes[1..], [2, 1, b's', 1, 200, 0, 0]);
        assert_eq!(postcard::from_bytes(&bytes), Ok(query));
        let values = ToProcess::Values { values: vec![None, Some(vec![9, 200])] };
        let bytes = postcard::to_allocvec(&values).unwrap();
        assert_eq!(bytes[1..], [2, 0, 1, 2, 9, 200]);
        assert_eq!(postcard::from_bytes(&bytes), Ok(values));
    }
}
