// Package rpmtest makes packages for tests: single ones of a description, and a corpus of the
// shape of CentOS Stream's AppStream, of any size.
//
// The corpus has the names, versions, dependencies and texts of the real primary.xml in the shared
// test data; paths are those of the real BaseOS, spread over the packages at the number that
// AppStream has, and changelogs are made up at its sizes. The payload is empty. Headers and
// digests are what rpm makes of a package of format 4, and every byte follows from the index of
// the package.
package rpmtest
