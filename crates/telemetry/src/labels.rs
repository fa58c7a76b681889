//! Which objects have label values of their own: a bound for all, and no owner takes what others need.

use std::collections::{HashMap, HashSet};

use crate::catalog::LABEL_CAP;

/// Names that are shown as labels, by owner (a tenant).
///
/// At most [`LABEL_CAP`] in all, and of one owner at most half of what the others leave of it: a tenant that makes
/// names without end loses its own in `other`, and never another's.
#[derive(Debug, Default)]
pub struct Shown {
    by_owner: HashMap<Box<str>, HashSet<Box<str>>>,
    total: usize,
}

impl Shown {
    /// Whether the name is shown; from then on it is, until it is dropped.
    pub fn admit(&mut self, owner: &str, name: &str) -> bool {
        let own = self.by_owner.get(owner);
        if own.is_some_and(|names| names.contains(name)) {
            return true;
        }
        let own = own.map_or(0, HashSet::len);
        let left = LABEL_CAP.saturating_sub(self.total - own);
        if own >= left.div_ceil(2) {
            return false;
        }
        self.total += 1;
        self.by_owner.entry(owner.into()).or_default().insert(name.into())
    }

    /// Makes room for others.
    pub fn drop(&mut self, owner: &str, name: &str) {
        let Some(names) = self.by_owner.get_mut(owner) else { return };
        self.total -= usize::from(names.remove(name));
        if names.is_empty() {
            self.by_owner.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the owner's first names are shown.
    fn admitted(shown: &mut Shown, owner: &str, names: usize) -> usize {
        (0..names).filter(|n| shown.admit(owner, &n.to_string())).count()
    }

    #[test]
    fn one_owner_takes_half_and_leaves_others_theirs() {
        let mut shown = Shown::default();
        assert_eq!(admitted(&mut shown, "greedy", LABEL_CAP * 3), LABEL_CAP / 2);
        for owner in 0..100 {
            assert_eq!(admitted(&mut shown, &format!("small-{owner}"), 3), 3, "{owner}");
        }
        assert_eq!(admitted(&mut shown, "greedy", LABEL_CAP * 3), LABEL_CAP / 2, "those it has, it keeps");
        assert!(shown.total <= LABEL_CAP);
    }

    #[test]
    fn all_together_are_bounded() {
        let mut shown = Shown::default();
        let total: usize = (0..LABEL_CAP * 2).map(|owner| admitted(&mut shown, &owner.to_string(), 2)).sum();
        assert_eq!((total, shown.total), (LABEL_CAP, LABEL_CAP));
    }

    #[test]
    fn dropped_names_make_room() {
        let mut shown = Shown::default();
        admitted(&mut shown, "a", LABEL_CAP);
        assert!(!shown.admit("a", "new"));
        shown.drop("a", "0");
        shown.drop("a", "never there");
        assert!(shown.admit("a", "new"));
        for n in 0..LABEL_CAP {
            shown.drop("a", &n.to_string());
        }
        shown.drop("a", "new");
        assert!(shown.total == 0 && shown.by_owner.is_empty());
    }
}
