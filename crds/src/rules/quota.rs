//! Rules of TenantQuota.

use super::{CelRule, invalid};

/// Pods, claims and Services carry the name as a label.
pub const NAME_LENGTH: CelRule = invalid(
    "size(self.metadata.name) <= 63",
    "metadata.name is longer than 63 characters, and pods carry it as a label; write a shorter name",
);
/// Names of Namespaces.
pub const NAMESPACES: CelRule = invalid(
    "self.all(name, !format.dns1123Label().validate(name).hasValue())",
    "no namespace can have this name: lower-case letters, digits and '-'; write the name that kubectl get ns shows",
);
/// Borrowing and lending happen in a cohort.
pub const NEEDS_COHORT: CelRule = invalid(
    "has(self.cohort) || !has(self.gpus) || self.gpus.all(g, !has(g.borrowingLimit) && !has(g.lendingLimit))",
    "borrowingLimit and lendingLimit need others to borrow from and lend to; write spec.cohort",
);
/// Money.
pub const PER_HOUR: CelRule = invalid(
    "self.matches('^[0-9]{1,12}([.][0-9]{1,6})?$')",
    "spend.perHour is digits with at most six decimals; write for example \"120.00\"",
);
/// A number of GPUs.
pub const QUANTITY: CelRule = invalid(
    "isQuantity(self) && !quantity(self).isLessThan(quantity('0'))",
    "this is a number of GPUs of at least 0; write for example \"4\" or 500m",
);
/// Usually a unit of memory: `4Gi`.
pub const QUANTITY_RANGE: CelRule = invalid(
    "!isQuantity(self) || quantity(self).compareTo(quantity('1M')) <= 0",
    "this is more than a million GPUs, check the unit; write for example \"4\" or 500m",
);
/// What is lent is part of what is guaranteed.
pub const LENDING: CelRule = invalid(
    "!has(self.lendingLimit) || !isQuantity(self.lendingLimit) || !isQuantity(self.nominalQuota) || quantity(self.lendingLimit).compareTo(quantity(self.nominalQuota)) <= 0",
    "lendingLimit is above nominalQuota; write at most what is guaranteed",
);
