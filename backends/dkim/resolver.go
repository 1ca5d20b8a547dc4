package dkim

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// A resolver asks the DNS for absolute names, so that no search list of this
// machine leads elsewhere. All it does not know for sure is temporary.
type resolver struct{ net.Resolver }

// newResolver returns a resolver that asks the server at HOST:PORT, or those
// of the system if there is none.
func newResolver(server string) *resolver {
	return &resolver{net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, cmp.Or(server, address))
		if err == nil {
			// A lookup that is given up would wait for its answer.
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}}}
}

// maxRecord is more than a key of 16384 bits needs. What is larger costs more
// time than it is worth.
const maxRecord = 4 << 10

// LookupTXT returns no record that is larger than maxRecord.
func (r *resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	records, err := r.Resolver.LookupTXT(ctx, absolute(name))
	records = slices.DeleteFunc(records, func(r string) bool { return len(r) > maxRecord })
	return records, temporary(err)
}

func (r *resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	records, err := r.Resolver.LookupMX(ctx, absolute(name))
	return records, temporary(err)
}

func (r *resolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := r.Resolver.LookupIPAddr(ctx, absolute(host))
	return addrs, temporary(err)
}

func (r *resolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	names, err := r.Resolver.LookupAddr(ctx, addr)
	return names, temporary(err)
}

// absolute returns a name as the DNS has it: RFC 8616, section 2.
func absolute(name string) string { return strings.TrimSuffix(asciiDomain(name), ".") + "." }

var toASCII = idna.New(idna.MapForLookup(), idna.StrictDomainName(false))

// asciiDomain returns a domain in A-labels and lower case. One that cannot be
// written so is in no DNS.
func asciiDomain(domain string) string {
	if len(domain) > 1<<10 { // the conversion may take the square of it
		return ""
	}
	ascii, err := toASCII.ToASCII(domain)
	if err != nil {
		return strings.ToLower(domain)
	}
	return ascii
}

// temporary makes an error temporary, unless it says that there is no such
// record.
func temporary(err error) error {
	if failed, ok := errors.AsType[*net.DNSError](err); ok && !failed.IsNotFound {
		again := *failed
		again.IsTemporary = true
		return &again
	}
	return err
}
