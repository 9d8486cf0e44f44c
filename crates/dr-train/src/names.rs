//! [`Names`]: what is asked for by its name.

use dr_runtime::UnknownName;

/// Things of one kind by their names, in the order in which they are listed.
pub struct Names<T: ?Sized + 'static> {
    what: &'static str,
    name: fn(&T) -> &'static str,
    things: Vec<&'static T>,
}

impl<T: ?Sized> Names<T> {
    /// These things; `what` says in messages what one of them is.
    #[must_use]
    pub fn new(
        what: &'static str, name: fn(&T) -> &'static str, things: impl IntoIterator<Item = &'static T>,
    ) -> Self {
        Self { what, name, things: things.into_iter().collect() }
    }

    /// The same with one more, instead of one of the same name if there is one.
    #[must_use]
    pub fn with(mut self, thing: &'static T) -> Self {
        self.things.retain(|other| (self.name)(other) != (self.name)(thing));
        self.things.push(thing);
        self
    }

    /// All names.
    #[must_use]
    pub fn all(&self) -> Vec<&'static str> {
        self.things.iter().map(|thing| (self.name)(thing)).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'static T> {
        self.things.iter().copied()
    }

    /// The one of this name.
    ///
    /// # Errors
    /// A name that is none of [`Names::all`].
    pub fn get(&self, name: &str) -> Result<&'static T, UnknownName> {
        let found = self.things.iter().find(|thing| (self.name)(thing) == name);
        let unknown = || UnknownName { what: self.what, name: name.to_owned(), expected: self.all() };
        found.copied().ok_or_else(unknown)
    }
}
