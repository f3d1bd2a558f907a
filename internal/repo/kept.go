package repo

import "sync"

// kept is what is kept in memory of things that never change: most of them, and none again when
// they get more. It may be used at the same time.
type kept[K comparable, V any] struct {
	most int
	mu   sync.Mutex // guards m
	m    map[K]V
}

func (k *kept[K, V]) get(key K) (V, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.m[key]
	return v, ok
}

func (k *kept[K, V]) put(key K, v V) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m == nil || len(k.m) >= k.most {
		k.m = map[K]V{}
	}
	k.m[key] = v
}

func (k *kept[K, V]) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m = nil
}
