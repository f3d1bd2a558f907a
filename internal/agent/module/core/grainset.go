package core

import (
	"fmt"
	"reflect"
	"slices"

	"drover/internal/agent/module"
)

// hidden is a grain as it may be shown to others.
func hidden(key string, v any, sanitize bool) any {
	if !sanitize {
		return v
	}
	switch key {
	case "serialnumber":
		s := module.Plain(v)
		keep := len(s) * 3 / 4
		out := []byte(s)
		for i := keep; i < len(out); i++ {
			out[i] = 'X'
		}
		return string(out)
	case "domain":
		return "DOMAINNAME"
	case "fqdn":
		return "MINION.DOMAINNAME"
	case "id", "host", "localhost", "nodename":
		return "MINION"
	}
	return v
}

// setvals sets grains by their first names; nothing is left of one that is set to None and
// destructive.
func setvals(own, vals map[string]any, destructive bool) (any, bool, error) {
	out := map[string]any{}
	changed := false
	for k, v := range vals {
		v = tidy(clone(v))
		old, there := own[k]
		if v == nil && destructive {
			delete(own, k)
			changed = changed || there
		} else {
			own[k] = v
			changed = changed || !there || !reflect.DeepEqual(old, v)
		}
		out[k] = v
	}
	return out, changed, nil
}

// answer is Salt's of grains.set and what is made of it.
func answer(ok bool, say string, changes map[string]any) map[string]any {
	if changes == nil {
		changes = map[string]any{}
	}
	return map[string]any{"result": ok, "comment": say, "changes": changes}
}

func remove(own map[string]any, key, delimiter string, destructive bool) (any, bool, error) {
	old, there := traverse(own, key, delimiter)
	if !there || old == nil && !destructive {
		return answer(true, "Grain is already set", nil), false, nil
	}
	m, last, err := place(own, key, delimiter, false)
	if err != nil {
		return nil, false, err
	}
	if destructive {
		delete(m, last)
	} else {
		m[last] = nil
	}
	return answer(true, "", map[string]any{key: nil}), true, nil
}

func complexValue(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return true
	}
	return false
}

func setGrain(own map[string]any, c *module.Call) (any, bool, error) {
	key, delimiter, force := c.Str("key"), c.Str("delimiter"), c.Bool("force")
	val := tidy(clone(c.Any("val")))
	old, there := traverse(own, key, delimiter)
	switch {
	case val == nil && c.Bool("destructive"):
		return remove(own, key, delimiter, true)
	case there && reflect.DeepEqual(old, val):
		return answer(true, "Grain is already set", nil), false, nil
	case there && old != nil && !force && complexValue(old):
		return answer(false, fmt.Sprintf("The key '%s' exists but is a dict or a list. Use 'force=True' to overwrite.", key), nil), false, nil
	case there && old != nil && !force && complexValue(val):
		return answer(false, fmt.Sprintf("The key '%s' exists and the given value is a dict or a list. Use 'force=True' to overwrite.", key), nil), false, nil
	}
	m, last, err := place(own, key, delimiter, force)
	if err != nil {
		return answer(false, err.Error(), nil), false, nil //nolint:nilerr // Salt's shape
	}
	m[last] = val
	return answer(true, "", map[string]any{key: val}), true, nil
}

// list is a grain that is to be a list; why says why it is none.
func list(own map[string]any, key, delimiter string, convert bool) (l []any, why string) {
	v, there := traverse(own, key, delimiter)
	switch x := v.(type) {
	case []any:
		return x, ""
	case nil:
		return []any{}, ""
	default:
		if convert && there {
			return []any{x}, ""
		}
	}
	return nil, "The key " + key + " is not a valid list"
}

func appendGrain(own map[string]any, c *module.Call) (any, bool, error) {
	key, delimiter := c.Str("key"), c.Str("delimiter")
	l, why := list(own, key, delimiter, c.Bool("convert"))
	if why != "" {
		return why, false, nil
	}
	val := tidy(clone(c.Any("val")))
	has := func(v any) bool { return slices.ContainsFunc(l, func(e any) bool { return reflect.DeepEqual(e, v) }) }
	if has(val) {
		return fmt.Sprintf("The val %s was already in the list %s", module.Plain(val), key), false, nil
	}
	l = slices.Clone(l)
	if more, ok := val.([]any); ok {
		l = append(l, more...)
	} else {
		l = append(l, val)
	}
	return putList(own, key, delimiter, l)
}

func removeGrain(own map[string]any, c *module.Call) (any, bool, error) {
	key, delimiter := c.Str("key"), c.Str("delimiter")
	l, why := list(own, key, delimiter, false)
	if why != "" {
		return why, false, nil
	}
	val := tidy(c.Any("val"))
	i := slices.IndexFunc(l, func(e any) bool { return reflect.DeepEqual(e, val) })
	if i < 0 {
		return fmt.Sprintf("The val %s was not in the list %s", module.Plain(val), key), false, nil
	}
	return putList(own, key, delimiter, slices.Delete(slices.Clone(l), i, i+1))
}

func putList(own map[string]any, key, delimiter string, l []any) (any, bool, error) {
	m, last, err := place(own, key, delimiter, true)
	if err != nil {
		return nil, false, err
	}
	m[last] = l
	return map[string]any{key: l}, true, nil
}
