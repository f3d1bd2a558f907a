package module

import "context"

// Run is what a function does.
type Run = func(ctx context.Context, c *Call) (any, error)

// Reads makes a function that changes nothing. This and the makers below keep the entries of the
// packages' tables to a line or two.
func Reads(name, doc string, run Run, params ...Param) Function {
	return Function{Name: name, Doc: doc, Params: params, Reads: true, Run: run}
}

// Changes makes a function that changes something and is refused in test mode.
func Changes(name, doc string, run Run, params ...Param) Function {
	return Function{Name: name, Doc: doc, Params: params, Run: run}
}

// Tests makes a function that changes something and knows test mode.
func Tests(name, doc string, run Run, params ...Param) Function {
	return Function{Name: name, Doc: doc, Params: params, Tests: true, Run: run}
}

// Rest lets a function take more arguments by position.
func Rest(f Function) Function { f.Rest = true; return f }

// Extra lets a function take keywords that it does not name.
func Extra(f Function) Function { f.Extra = true; return f }

// Open lets a function take any arguments, as Salt's *args and **kwargs.
func Open(f Function) Function { return Rest(Extra(f)) }

// Need makes an argument that must be given.
func Need(name string, t Type) Param { return Param{Name: name, Type: t, Required: true} }

// May makes an argument that may be given, and is def otherwise.
func May(name string, t Type, def any) Param { return Param{Name: name, Type: t, Default: def} }
