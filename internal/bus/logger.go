package bus

import (
	"fmt"
	"log/slog"
)

// logger gives the embedded server's lines to drover's log. What it tells of each client that
// comes and goes is not for people.
type logger struct{ log *slog.Logger }

// Noticef implements server.Logger.
func (l logger) Noticef(format string, v ...any) { l.log.Debug("bus: " + fmt.Sprintf(format, v...)) }

// Warnf implements server.Logger.
func (l logger) Warnf(format string, v ...any) { l.log.Warn("bus: " + fmt.Sprintf(format, v...)) }

// Errorf implements server.Logger: refused clients are among it.
func (l logger) Errorf(format string, v ...any) { l.log.Warn("bus: " + fmt.Sprintf(format, v...)) }

// Fatalf implements server.Logger. The server ends its own work, and not this process.
func (l logger) Fatalf(format string, v ...any) { l.log.Error("bus: " + fmt.Sprintf(format, v...)) }

// Debugf implements server.Logger.
func (l logger) Debugf(format string, v ...any) { l.log.Debug("bus: " + fmt.Sprintf(format, v...)) }

// Tracef implements server.Logger.
func (l logger) Tracef(string, ...any) {}
