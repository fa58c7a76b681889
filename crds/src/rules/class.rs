//! Rules of GpuClass.

use super::{CelRule, invalid};

/// Variants name the class in at most 63 characters.
pub const NAME_LENGTH: CelRule = invalid(
    "size(self.metadata.name) <= 63",
    "metadata.name is longer than 63 characters, and no variant could name it; write a shorter name",
);
/// Something must select.
pub const SELECTS: CelRule = invalid(
    "has(self.productNames) || has(self.minMemory) || has(self.architectures)",
    "an empty selector would take every GPU; write productNames, minMemory or architectures",
);
/// A size.
pub const MIN_MEMORY: CelRule = invalid(
    "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
    "minMemory is a quantity above 0; write for example minMemory: 79Gi",
);
/// Usually a missing or a wrong unit.
pub const MIN_MEMORY_RANGE: CelRule = invalid(
    "!isQuantity(self) || !quantity(self).isGreaterThan(quantity('0')) || (quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('1Pi')) <= 0)",
    "minMemory is below 1Mi or above 1Pi, check the unit; write for example minMemory: 79Gi",
);
/// Money.
pub const PRICE: CelRule = invalid(
    "self.matches('^[0-9]{1,12}([.][0-9]{1,6})?$')",
    "pricePerHour is digits with at most six decimals; write for example \"3.00\"",
);
/// ISO 4217.
pub const CURRENCY: CelRule =
    invalid("self.matches('^[A-Z]{3}$')", "currency is three capital letters; write for example USD");
/// Both or neither.
pub const PRICE_NEEDS_CURRENCY: CelRule = invalid(
    "has(self.pricePerHour) == has(self.currency)",
    "pricePerHour and currency go together; write both or neither",
);
