package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"drover/internal/durable"
	"drover/internal/fault"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// keys are what a server of drover's is on the bus. The operator signs the accounts; the account
// of the fleet signs its users, which are the agents.
type keys struct {
	operator, system, fleet nkeys.KeyPair
}

// openKeys reads the keys of a directory, and makes those that are not there.
func openKeys(dir string) (k keys, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, err
	}
	for _, f := range []struct {
		name string
		kind nkeys.PrefixByte
		to   *nkeys.KeyPair
	}{{"operator", nkeys.PrefixByteOperator, &k.operator}, {"system", nkeys.PrefixByteAccount, &k.system}, {"fleet", nkeys.PrefixByteAccount, &k.fleet}} {
		path := filepath.Join(dir, f.name+".seed")
		seed, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			pair, err := nkeys.CreatePair(f.kind)
			if err != nil {
				return k, err
			}
			if seed, err = pair.Seed(); err != nil {
				return k, err
			}
			if err := durable.WriteFile(path, seed, 0o600); err != nil {
				return k, err
			}
		} else if err != nil {
			return k, err
		}
		if *f.to, err = nkeys.FromSeed(seed); err != nil {
			return k, fault.Internal("bus_key", "%s holds no key", path).Wrap(err).Fix("restore it from a backup; without it every agent has to join again")
		}
		if pub, err := (*f.to).PublicKey(); err != nil || nkeys.Prefix(pub) != f.kind {
			return k, fault.Internal("bus_key", "%s holds a key of another kind", path).Wrap(err).Fix("restore it from a backup; without it every agent has to join again")
		}
	}
	return k, nil
}

func public(k nkeys.KeyPair) string {
	p, err := k.PublicKey()
	if err != nil {
		panic(err) // of keys that were checked
	}
	return p
}

// operatorJWT is the operator as servers trust it.
func (k keys) operatorJWT() (string, *jwt.OperatorClaims, error) {
	c := jwt.NewOperatorClaims(public(k.operator))
	c.Name = "drover"
	c.SystemAccount = public(k.system)
	text, err := c.Encode(k.operator)
	if err != nil {
		return "", nil, err
	}
	c, err = jwt.DecodeOperatorClaims(text)
	return text, c, err
}

// systemJWT is the account in which servers speak among themselves.
func (k keys) systemJWT() (string, error) {
	c := jwt.NewAccountClaims(public(k.system))
	c.Name = "system"
	return c.Encode(k.operator)
}

// fleetJWT is the account of all agents, without those whose keys are revoked: a user with a key
// that is in revoked, with a JWT of that time or before, is cut off and not let in again.
func (k keys) fleetJWT(revoked map[string]time.Time) (string, error) {
	c := jwt.NewAccountClaims(public(k.fleet))
	c.Name = "fleet"
	c.Limits.Payload = maxPayload
	for key, at := range revoked {
		c.RevokeAt(key, at)
	}
	return c.Encode(k.operator)
}

// ServerConfig is what the servers of a cluster need in their configuration to let drover's
// agents in: with the keys of a directory, which are made when they are not there. It holds
// nothing secret.
func ServerConfig(dir string) (string, error) {
	k, err := openKeys(dir)
	if err != nil {
		return "", err
	}
	operator, _, err := k.operatorJWT()
	if err != nil {
		return "", err
	}
	system, err := k.systemJWT()
	if err != nil {
		return "", err
	}
	fleet, err := k.fleetJWT(nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n  %[2]s: %[3]s\n  %[4]s: %[5]s\n}\nmax_payload: %[6]d\nauthorization { timeout: %[7]d }\n",
		operator, public(k.system), system, public(k.fleet), fleet, maxPayload, int(authWait.Seconds())), nil
}

var reName = regexp.MustCompile(`^[a-z0-9]{1,40}$`)

// agentJWT is what lets an agent in: its own subjects and no others.
func (k keys) agentJWT(name, key string) (string, error) {
	if !reName.MatchString(name) || !nkeys.IsValidPublicUserKey(key) {
		return "", fault.Invalid("bus_agent", "%.80q with the key %.80q is no agent", name, key).Fix("an agent's key is the public part of an Ed25519 user nkey")
	}
	c := jwt.NewUserClaims(key)
	c.Name = name
	c.Sub.Allow.Add("to."+name+".>", "all.>")
	c.Pub.Allow.Add("from." + name + ".>")
	c.Limits.Subs = 8
	c.Limits.Payload = maxPayload
	return c.Encode(k.fleet)
}

// serverJWT lets drover itself in, with a key for this process only.
func (k keys) serverJWT(account nkeys.KeyPair, key string) (string, error) {
	c := jwt.NewUserClaims(key)
	c.Name = "drover"
	c.Expires = time.Now().Add(10 * 365 * 24 * time.Hour).Unix()
	return c.Encode(account)
}
