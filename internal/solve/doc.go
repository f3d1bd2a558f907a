// Package solve is the dependency gate of snapshots: it tells which packages could be
// installed from one set of packages and no longer can from another, and why.
//
// The question is that of libsolv with an empty system, the flags that libdnf gives it and
// one package to install: does a set of packages exist that contains it, in which every
// requirement is met and no two packages exclude each other? Two packages do when one
// conflicts with something the other provides, when one obsoletes the other by name, or when
// they have the same name and are not of different word sizes: foo.i686 and foo.x86_64 may
// live beside each other, two versions of foo.x86_64 may not. The answer is exact.
//
// A Pool interns everything that was ever loaded into it and keeps the index of who provides
// what to whom; a Universe is a set of bits over it. What is known of a universe is a
// handful of large sets of packages that are consistent in themselves: each is a proof for all
// of its members at once. A change of a few packages is answered by repairing those sets.
// Only what falls out of them is asked of a SAT solver.
//
// Not modeled:
//
//   - several kernels beside each other (installonlypkgs), which no requirement of a package
//     asks for;
//   - weak dependencies, which never keep a package out;
//   - modules: the caller leaves out what is hidden, and source packages;
//   - which architecture is preferred, and that an i686 package must have the version of its
//     x86_64 twin where that is within reach: libsolv's taste, rpm installs others;
//   - a rich conflict that has a condition and names something that its own package provides,
//     "(itself unless other)": it is taken at its word, while libsolv drops parts of it by how
//     it is written.
//
// Sources: rpm's manual of dependencies and rich dependencies, libsolv's rules.c and
// cplxdeps.c for what its answers depend on.
package solve
