//! Where Burn puts what nobody gives a device.

/// Makes Flex, which is always there, Burn's default device, unless `BURN_DEVICE` says another.
///
/// Burn restores the states of optimizers on its default device, and moves them to the one that trains with the next step. Without
/// `BURN_DEVICE` the default is the first kind that is compiled in: CUDA, on a machine that has none, panics.
pub(super) fn default_to_flex() {
    const NAME: &str = "BURN_DEVICE";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: The program has just begun: no other thread reads the environment.
        unsafe { std::env::set_var(NAME, "flex") };
    }
}
