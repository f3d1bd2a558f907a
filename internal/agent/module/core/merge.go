package core

import (
	"reflect"
	"slices"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// update puts upd over dest, mappings into each other, and changes dest. Lists are replaced, or
// with lists extended by what they have not.
func update(dest, upd map[string]any, recursive, lists bool) map[string]any {
	for k, v := range upd {
		old, there := dest[k]
		switch x := v.(type) {
		case map[string]any:
			if m, ok := old.(map[string]any); ok && there && recursive {
				dest[k] = update(m, x, true, lists)
				continue
			}
		case []any:
			if l, ok := old.([]any); ok && there && recursive && lists {
				merged := slices.Clone(l)
				for _, e := range x {
					if !slices.ContainsFunc(merged, func(m any) bool { return reflect.DeepEqual(m, e) }) {
						merged = append(merged, e)
					}
				}
				dest[k] = merged
				continue
			}
		}
		dest[k] = v
	}
	return dest
}

// merge gives a and b as one by a strategy of Salt's; neither is changed.
func merge(a, b map[string]any, strategy, renderer string, lists bool) (map[string]any, error) {
	x, _ := clone(a).(map[string]any)
	y, _ := clone(b).(map[string]any)
	if x == nil {
		x = map[string]any{}
	}
	if strategy == "smart" {
		strategy = "recurse"
		if renderer == "yamlex" || len(renderer) > 7 && renderer[:7] == "yamlex_" {
			strategy = "aggregate"
		}
	}
	switch strategy {
	case "list":
		for k, v := range x {
			if w, ok := y[k]; ok {
				x[k] = []any{v, w}
			}
		}
		return x, nil
	case "recurse", "none":
		return update(x, y, true, lists), nil
	case "aggregate", "overwrite":
		// Nothing is marked for aggregation in data that has no tags: the first level is merged.
		return update(x, y, false, false), nil
	}
	return nil, fault.Invalid("bad_strategy", "there is no strategy %q for merging", strategy).Fix("smart, recurse, aggregate, overwrite, list or none")
}

// filterBy chooses an entry of lookup by a value, or values, as Salt's grains.filter_by does: keys
// are globs, a key that is the value itself comes before others. Salt goes by the order in which
// the keys were written, which is lost on the way here; the others go by the alphabet.
func filterBy(lookup map[string]any, value, over, def, base any, lists bool) (any, error) {
	values, ok := value.([]any)
	if !ok {
		values = []any{value}
	}
	var found any
	for _, v := range values {
		if found = choose(lookup, module.Plain(v)); found != nil {
			break
		}
	}
	return layered(lookup, found, over, def, base, lists)
}

func choose(lookup map[string]any, v string) any {
	if x := lookup[v]; x != nil {
		return x
	}
	for _, k := range sortedKeys(lookup) {
		if lookup[k] != nil && fnmatch(k, v) {
			return lookup[k]
		}
	}
	return nil
}

// layered puts what was found over the base, and merge over both.
func layered(lookup map[string]any, found, over, def, base any, lists bool) (any, error) {
	if found == nil && def != nil {
		found = lookup[module.Plain(def)]
	}
	if truth(base) {
		if below, ok := lookup[module.Plain(base)]; ok {
			switch b := below.(type) {
			case map[string]any:
				switch f := found.(type) {
				case nil:
					found = b
				case map[string]any:
					lower, _ := clone(b).(map[string]any)
					upper, _ := clone(f).(map[string]any)
					found = update(lower, upper, true, lists)
				default:
					return nil, fault.Invalid("argument", "filter_by default and look-up values must both be dictionaries.")
				}
			default:
				if found == nil {
					found = b
				}
			}
		}
	}
	if !truth(over) {
		return found, nil
	}
	m, ok := over.(map[string]any)
	if !ok {
		return nil, fault.Invalid("argument", "filter_by merge argument must be a dictionary.")
	}
	if found == nil {
		return m, nil
	}
	f, ok := clone(found).(map[string]any)
	if !ok {
		return nil, fault.Invalid("argument", "filter_by can only merge into a dictionary")
	}
	upper, _ := clone(m).(map[string]any)
	return update(f, upper, true, lists), nil
}
