//! The backup repository: how a data directory and WAL become sealed objects in an object store,
//! and come back. Readable without any database: a vault and its key-encryption key are enough
//! (DESIGN §3.14). The bytes are described in `docs/VAULT-FORMAT.md`.

pub mod wal;
