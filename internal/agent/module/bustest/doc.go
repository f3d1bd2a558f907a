// Package bustest runs a message bus of a test's own, so that what talks to systemd or firewalld
// over D-Bus can be tested against a stand-in. What the stand-ins answer belongs into the tests;
// nothing that runs outside of tests must ever come in.
package bustest
