package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// readKey reads a private key from a file that is not everybody's to read.
func readKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&0o007 != 0:
		return nil, fmt.Errorf("%s: mode %04o lets everybody at the key; want chmod o= %[1]s", path, info.Mode().Perm())
	case !info.Mode().IsRegular() || info.Size() > maxKeyFile:
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is no file with a key")}
	}
	text := make([]byte, info.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

const maxKeyFile = 64 << 10

// parseKey parses the first private key in PEM form: RSA in PKCS #1 or PKCS
// #8, Ed25519 in PKCS #8.
func parseKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		return checkKey(key)
	}
	return nil, errors.New("has no private key in PEM form")
}

// checkKey checks that verifiers take the key: RFC 8301, section 3.2, and RFC
// 8463.
func checkKey(key any) (crypto.Signer, error) {
	switch key := key.(type) {
	case ed25519.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < 1024 || bits > 4096 {
			return nil, fmt.Errorf("RSA key of %d bits, want 2048, and 1024 to 4096 in any case", bits)
		}
		return key, nil
	}
	return nil, fmt.Errorf("%T, want an RSA or an Ed25519 key", key)
}

// record returns what is to be in the DNS for a key: RFC 6376, section 3.6.1.
func record(key crypto.Signer) string {
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	default:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			panic(err) // it came out of checkKey
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	}
}
