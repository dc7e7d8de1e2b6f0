//! A child that knows its parent by an identity which changes with the parent's content: it is told before the content
//! changes, and after.

use std::time::{Duration, SystemTime};

use cowhand_core::{Error, Identity, Image, Link, ParentRef, Result};

/// A parent whose content is about to change, and the layer directly above, which knows it and stays.
#[derive(Debug)]
pub(crate) struct Kinship<'a> {
    child: &'a Link,
    parent: &'a Link,
    /// The identity that the parent has, and the one that it will have.
    ids: [[u8; 16]; 2],
    /// What the child calls its parent.
    names: ParentRef,
}

/// The layer above the one at `depth`, which is open for writing, has to be told of a change of that one's content.
pub(crate) fn must_be_told(chain: &Image, depth: usize) -> Result<bool> {
    Ok(ids(chain, depth)?.is_some())
}

/// The identities of the layer at `depth`, now and behind its first change, where the layer above goes by them.
fn ids(chain: &Image, depth: usize) -> Result<Option<[[u8; 16]; 2]>> {
    let Some((child, parent)) = pair(chain, depth) else { return Ok(None) };
    let next = parent.layer.next_identity().map_err(|error| error.image(&parent.name))?;
    let Some((now, next)) = parent.layer.identity().0.zip(next) else { return Ok(None) };
    // One that did not know it before need not know it afterwards.
    let known = child.layer.parent().is_some_and(|named| named.expected.contains(&now));
    Ok(known.then_some([now, next]))
}

fn pair(chain: &Image, depth: usize) -> Option<(&Link, &Link)> {
    let links = chain.links();
    Some((links.get(depth.checked_sub(1)?)?, links.get(depth)?))
}

impl<'a> Kinship<'a> {
    /// That of the layers at `depth` and above it, both open for writing. `names`: what the child is to call its parent
    /// afterwards. `None`: nobody has to be told.
    pub(crate) fn of(chain: &'a Image, depth: usize, names: &ParentRef) -> Result<Option<Kinship<'a>>> {
        let (Some(ids), Some((child, parent))) = (ids(chain, depth)?, pair(chain, depth)) else {
            return Ok(None);
        };
        Ok(Some(Kinship { child, parent, ids, names: names.clone() }))
    }

    /// From now on the child takes the parent for its own with the identity that it has, and with the one that it will
    /// have. Durable when it returns.
    pub(crate) fn tell_before(&self) -> Result<()> {
        let [now, next] = self.ids;
        // What a run that was stopped has noted makes room: there may be place for one more identity, and not for two. And
        // a name that cannot be written is known before anything changes.
        self.name(Some(now))?;
        let layer = &self.child.layer;
        layer.expect_parent(next).map_err(|error| error.image(&self.child.name))?;
        let noted = layer.parent().is_some_and(|named| named.expected.contains(&next));
        // Who can remember but one identity goes by the name alone meanwhile.
        if noted { Ok(()) } else { self.name(None) }
    }

    /// The parent is durable as it will stay: the child goes by the identity that it has now.
    pub(crate) fn tell_after(&self) -> Result<()> {
        self.name(self.parent.layer.identity().0)
    }

    /// Closes the child: nothing more is to be told.
    pub(crate) fn close(&self) -> Result<()> {
        self.child.layer.close().map_err(|error| error.image(&self.child.name))
    }

    fn name(&self, id: Option<[u8; 16]>) -> Result<()> {
        let named = |error: Error| error.image(&self.child.name);
        let expected = id.into_iter().collect();
        let modified = self.parent.layer.host().identity().ok().and_then(modified);
        // It stands on it as it is, whatever a new child would ask of a parent's sectors.
        let told = ParentRef { expected, modified, sector: None, ..self.names.clone() };
        self.child.layer.set_parent(Some(&told)).map_err(named)
    }
}

/// When a file was last changed; nothing where that was before 1970.
pub(crate) fn modified(file: Identity) -> Option<SystemTime> {
    let since = Duration::from_nanos(u64::try_from(file.mtime_ns).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use cowhand_core::{Extent, Layer, LayerId, MemoryStorage, Storage};

    use super::*;

    const OLD: [u8; 16] = [1; 16];
    const NEW: [u8; 16] = [2; 16];
    const FORMER: [u8; 16] = [3; 16];

    /// A layer that only says who it is, and whom it stands on.
    #[derive(Debug)]
    struct Person {
        host: Arc<dyn Storage>,
        id: Mutex<[u8; 16]>,
        next: Option<[u8; 16]>,
        /// What was named as the parent's identities, one after the other.
        named: Mutex<Vec<Vec<[u8; 16]>>>,
        /// How many identities of its parent it can remember.
        room: usize,
    }

    fn person(next: Option<[u8; 16]>, expected: &[[u8; 16]], room: usize) -> Arc<Person> {
        let host = Arc::new(MemoryStorage::new());
        let named = Mutex::new(vec![expected.to_vec()]);
        Arc::new(Person { host, id: Mutex::new(OLD), next, named, room })
    }

    impl Layer for Person {
        fn size(&self) -> u64 {
            512
        }

        fn granule(&self) -> u64 {
            512
        }

        fn host(&self) -> &Arc<dyn Storage> {
            &self.host
        }

        fn extent(&self, _at: u64, max: u64) -> Result<Extent> {
            Ok(Extent::hole(max))
        }

        fn read(&self, _at: u64, buf: &mut [u8]) -> Result<Extent> {
            Ok(Extent::hole(buf.len() as u64))
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }

        fn identity(&self) -> LayerId {
            LayerId(Some(*self.id.lock().unwrap()))
        }

        fn next_identity(&self) -> Result<Option<[u8; 16]>> {
            Ok(self.next)
        }

        fn expect_parent(&self, id: [u8; 16]) -> Result<()> {
            let mut named = self.named.lock().unwrap();
            let mut now = named.last().cloned().unwrap();
            if self.room > 1 {
                now.truncate(1);
                now.push(id);
                named.push(now);
            }
            Ok(())
        }

        fn parent(&self) -> Option<ParentRef> {
            let expected = self.named.lock().unwrap().last().cloned().unwrap();
            Some(ParentRef { expected, ..ParentRef::default() })
        }

        fn set_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
            let expected = parent.map(|parent| parent.expected.clone()).unwrap_or_default();
            assert!(expected.len() <= self.room);
            self.named.lock().unwrap().push(expected);
            Ok(())
        }
    }

    /// All that `child` remembered while `parent` changed.
    fn told(child: &Arc<Person>, parent: &Arc<Person>) -> Vec<Vec<[u8; 16]>> {
        let link = |layer: &Arc<Person>| Link { layer: layer.clone(), name: "x".to_owned(), format: "x" };
        let chain = Image::new(vec![link(child), link(parent)]).unwrap();
        let kinship = Kinship::of(&chain, 1, &ParentRef::default()).unwrap();
        assert_eq!(kinship.is_some(), must_be_told(&chain, 1).unwrap());
        if let Some(kinship) = kinship {
            kinship.tell_before().unwrap();
            *parent.id.lock().unwrap() = NEW;
            kinship.tell_after().unwrap();
        }
        child.named.lock().unwrap().clone()
    }

    #[test]
    fn a_child_is_told_before_and_after() {
        let parent = || person(Some(NEW), &[], 1);
        // What it remembers at first; and then.
        assert_eq!(
            told(&person(None, &[OLD], 2), &parent()),
            [vec![OLD], vec![OLD], vec![OLD, NEW], vec![NEW]]
        );
        // A run was stopped before: what it noted is the parent's now, or is nobody's.
        let all = told(&person(None, &[FORMER, OLD], 2), &parent());
        assert_eq!(all, [vec![FORMER, OLD], vec![OLD], vec![OLD, NEW], vec![NEW]]);
        let all = told(&person(None, &[OLD, FORMER], 2), &parent());
        assert_eq!(all, [vec![OLD, FORMER], vec![OLD], vec![OLD, NEW], vec![NEW]]);
    }

    #[test]
    fn one_that_remembers_one_identity_goes_by_the_name_meanwhile() {
        let all = told(&person(None, &[OLD], 1), &person(Some(NEW), &[], 1));
        assert_eq!(all, [vec![OLD], vec![OLD], vec![], vec![NEW]]);
    }

    #[test]
    fn who_does_not_go_by_it_is_not_told() {
        for (child, next) in [(&[][..], Some(NEW)), (&[FORMER][..], Some(NEW)), (&[OLD][..], None)] {
            let all = told(&person(None, child, 2), &person(next, &[], 1));
            assert_eq!(all, [child.to_vec()]);
        }
    }
}
