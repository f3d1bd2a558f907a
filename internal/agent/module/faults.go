package module

import (
	"strings"

	"drover/internal/fault"
)

// NoOption refuses a name that a program would take for an option.
func NoOption(what, s string) error {
	if s == "" || strings.HasPrefix(s, "-") || strings.ContainsAny(s, "\n\x00") {
		return fault.Invalid("bad_name", "%q cannot be the name of a %s", s, what)
	}
	return nil
}

// NoBus says that nothing answers on the system bus.
func NoBus(cause error) error {
	return fault.Unavailable("dbus_missing", "the system bus of this host does not answer").Wrap(cause).
		Fix("start dbus-broker or dbus-daemon; in a container without an init there is none")
}
