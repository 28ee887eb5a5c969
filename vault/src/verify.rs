//! Asking the vaults whether they have what is about to be promised (DESIGN §3.4): size by HEAD on
//! every object. Content is proven when an object is put, and by [`incarnation`] – which reads all of
//! it – whenever somebody asks.

mod finding;
pub mod incarnation;

use futures::{StreamExt, TryStreamExt};
use holdfast_domain::job::ObjectRef;

pub use finding::{Damage, Finding, judge};

use crate::store::Store;
use crate::{Error, Result};

/// HEAD requests in flight, of all vaults together.
const IN_FLIGHT: usize = 16;

/// Every object exists in every vault with the size that is recorded.
pub async fn verify_objects(stores: &[Store], objects: &[ObjectRef]) -> Result<()> {
    // Owned, so that the future is `Send` for whatever lifetimes its caller has.
    let mut pairs: Vec<(Store, ObjectRef)> = Vec::with_capacity(stores.len() * objects.len());
    for store in stores {
        pairs.extend(objects.iter().map(|object| (store.clone(), object.clone())));
    }
    futures::stream::iter(pairs)
        .map(|(store, object)| async move {
            if store.head(&object.key).await? == object.bytes {
                Ok(())
            } else {
                Err(Error::corrupted(
                    &object.key,
                    "it has another size than was recorded",
                ))
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
}
