// Package python has the module that plugins in Python import.
package python

import "embed"

// Files are mailgw.py and plugin_pb2.py, which belong together.
//
//go:embed *.py
var Files embed.FS
