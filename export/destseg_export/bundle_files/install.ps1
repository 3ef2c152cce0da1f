# Installs into venv beside this file, without a network:
#   powershell -ExecutionPolicy Bypass -File install.ps1
param([string]$Python = "py", [string[]]$PythonArguments = @("-{python}"))
$ErrorActionPreference = "Stop"
Set-Location $PSScriptRoot
foreach ($line in Get-Content SHA256SUMS) {
    $sum, $name = $line -split "  ", 2
    if ((Get-FileHash -Algorithm SHA256 $name).Hash -ne $sum) { throw "${name}: damaged" }
}
function Invoke-Checked { & $args[0] $args[1..$args.Count]; if ($LASTEXITCODE) { exit $LASTEXITCODE } }
Invoke-Checked $Python @PythonArguments -m venv venv
Invoke-Checked venv\Scripts\python.exe -m pip install --quiet --disable-pip-version-check --no-index `
    --find-links wheels --require-hashes --requirement requirements.txt
Invoke-Checked venv\Scripts\python.exe -c "import destseg_deploy; destseg_deploy.load('{artifact}').close()"
Write-Output "installed: $PSScriptRoot\venv\Scripts\destseg.exe predict $PSScriptRoot\{artifact} IMAGES"
